//! Bytes of the handshake to values and back. Pure: no socket, no export.
//!
//! # Invariants
//! 1. Any bytes may arrive: parsing answers [`Malformed`] and never panics, and allocates no more than [`MOST_QUERIES`] asks for.
//! 2. Strings that come out are UTF-8, free of NUL, and at most [`LONGEST_STRING`] bytes long.

use crate::wire::{Fields, LONGEST_STRING, OPTION_MAGIC, OPTION_REPLY_MAGIC, info};

/// Queries that one request about metadata contexts may hold.
pub(crate) const MOST_QUERIES: usize = 64;

/// Start of a client's option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OptionHeader {
    pub(crate) option: u32,
    /// Bytes of data that follow.
    pub(crate) len: u32,
}

impl OptionHeader {
    pub(crate) const LEN: usize = 16;

    /// `None` if the magic number is wrong.
    pub(crate) fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
        (u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]) == OPTION_MAGIC)
            .then(|| Self { option: u32::from_be_bytes([o0, o1, o2, o3]), len: u32::from_be_bytes([l0, l1, l2, l3]) })
    }
}

/// Why the data of an option cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Lengths that contradict each other, or a string that is none.
    Invalid,
    /// More or longer than this server takes.
    TooBig,
}

/// The name of an export, or a query.
pub(crate) fn string(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > LONGEST_STRING {
        return Err(Malformed::TooBig);
    }
    let string = std::str::from_utf8(bytes).map_err(|_| Malformed::Invalid)?;
    if string.contains('\0') { Err(Malformed::Invalid) } else { Ok(string) }
}

/// Data of `INFO` and `GO`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) export: &'a str,
    pub(crate) wants_name: bool,
    pub(crate) wants_description: bool,
}

impl<'a> InfoRequest<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(data);
        let export = string(fields.counted().ok_or(Malformed::Invalid)?)?;
        let count = fields.u16().ok_or(Malformed::Invalid)?;
        let wanted = fields.bytes(usize::from(count) * 2).ok_or(Malformed::Invalid)?;
        if !fields.0.is_empty() {
            return Err(Malformed::Invalid);
        }
        let (wanted, _) = wanted.as_chunks::<2>();
        let wants = |kind: u16| wanted.iter().any(|bytes| u16::from_be_bytes(*bytes) == kind);
        Ok(Self { export, wants_name: wants(info::NAME), wants_description: wants(info::DESCRIPTION) })
    }
}

/// Data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContextRequest<'a> {
    pub(crate) export: &'a str,
    pub(crate) queries: Vec<&'a str>,
}

impl<'a> ContextRequest<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(data);
        let export = string(fields.counted().ok_or(Malformed::Invalid)?)?;
        let count = fields.u32().ok_or(Malformed::Invalid)? as usize;
        if count > MOST_QUERIES {
            return Err(Malformed::TooBig);
        }
        let queries = (0..count)
            .map(|_| fields.counted().ok_or(Malformed::Invalid).and_then(string))
            .collect::<Result<_, _>>()?;
        if fields.0.is_empty() { Ok(Self { export, queries }) } else { Err(Malformed::Invalid) }
    }
}

/// Collects the replies to one option, to be sent at once.
pub(crate) struct OptionReplies<'a> {
    out: &'a mut Vec<u8>,
    option: u32,
}

impl<'a> OptionReplies<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>, option: u32) -> Self {
        Self { out, option }
    }

    /// A reply whose data are `parts`, one after the other.
    pub(crate) fn add(&mut self, kind: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&(len as u32).to_be_bytes());
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    /// A reply of kind `INFO`.
    pub(crate) fn add_info(&mut self, kind: u16, parts: &[&[u8]]) {
        let kind = kind.to_be_bytes();
        let mut all: [&[u8]; 4] = [&kind, &[], &[], &[]];
        all[1..=parts.len()].copy_from_slice(parts);
        self.add(crate::wire::option_reply::INFO, &all);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::option_reply;

    fn counted(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    fn info(name: &[u8], kinds: &[u16]) -> Vec<u8> {
        let mut data = counted(name);
        data.extend((kinds.len() as u16).to_be_bytes());
        kinds.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
        data
    }

    fn contexts(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
        let mut data = counted(name);
        data.extend((queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|query| data.extend(counted(query)));
        data
    }

    #[test]
    fn header_needs_its_magic() {
        let mut bytes = [0; OptionHeader::LEN];
        assert_eq!(OptionHeader::parse(&bytes), None);
        bytes[..8].copy_from_slice(b"IHAVEOPT");
        bytes[11] = 7;
        bytes[12..].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(OptionHeader::parse(&bytes), Some(OptionHeader { option: 7, len: 0x0102_0304 }));
    }

    #[test]
    fn info_requests() {
        let data = info(b"vol@x", &[3, 1]);
        let parsed = InfoRequest { export: "vol@x", wants_name: true, wants_description: false };
        assert_eq!(InfoRequest::parse(&data), Ok(parsed));
        assert_eq!(InfoRequest::parse(&data[..data.len() - 1]), Err(Malformed::Invalid));
        assert_eq!(InfoRequest::parse(&[&data[..], &[0]].concat()), Err(Malformed::Invalid));
        assert_eq!(InfoRequest::parse(&[0xff; 6]), Err(Malformed::Invalid));
        assert_eq!(InfoRequest::parse(&info(b"a\0b", &[])), Err(Malformed::Invalid));
        assert_eq!(InfoRequest::parse(&info(&[0xc3, 0x28], &[])), Err(Malformed::Invalid));
        assert_eq!(InfoRequest::parse(&info(&[b'a'; 4097], &[])), Err(Malformed::TooBig));
        assert!(InfoRequest::parse(&info(&[b'a'; 4096], &[])).is_ok());
    }

    #[test]
    fn context_requests() {
        let data = contexts(b"vol", &[b"base:allocation", b"qemu:"]);
        let parsed = ContextRequest { export: "vol", queries: vec!["base:allocation", "qemu:"] };
        assert_eq!(ContextRequest::parse(&data), Ok(parsed));
        assert_eq!(ContextRequest::parse(&data[..data.len() - 1]), Err(Malformed::Invalid));
        assert_eq!(ContextRequest::parse(&[&data[..], &[0]].concat()), Err(Malformed::Invalid));
        assert_eq!(ContextRequest::parse(&contexts(b"vol", &[&b"q"[..]; 65])), Err(Malformed::TooBig));
        let claims_too_many = [&counted(b"vol")[..], &[0xff; 4]].concat();
        assert_eq!(ContextRequest::parse(&claims_too_many), Err(Malformed::TooBig));
    }

    #[test]
    fn replies_carry_their_length() {
        let mut out = Vec::new();
        let mut replies = OptionReplies::new(&mut out, 3);
        replies.add(option_reply::SERVER, &[b"ab", b"c"]);
        replies.add_info(info::EXPORT, &[b"d"]);
        let magic = OPTION_REPLY_MAGIC.to_be_bytes();
        let first = [&magic[..], &[0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 3], b"abc"].concat();
        let second = [&magic[..], &[0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0], b"d"].concat();
        assert_eq!(out, [first, second].concat());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = InfoRequest::parse(&data);
            let _ = ContextRequest::parse(&data);
        }

        #[test]
        fn what_is_encoded_is_parsed(name in "[^\\x00]{0,40}", queries in proptest::collection::vec("[^\\x00]{0,20}", 0..8)) {
            let bytes: Vec<&[u8]> = queries.iter().map(|query| query.as_bytes()).collect();
            let data = contexts(name.as_bytes(), &bytes);
            let parsed = ContextRequest::parse(&data).expect("well-formed");
            prop_assert_eq!(parsed.export, &name);
            prop_assert_eq!(parsed.queries, queries);
        }

        #[test]
        fn a_cut_anywhere_is_noticed(name in "[a-z]{1,20}", kinds in proptest::collection::vec(0u16..5, 0..5), cut in any::<prop::sample::Index>()) {
            let data = info(name.as_bytes(), &kinds);
            prop_assert!(InfoRequest::parse(&data).is_ok());
            prop_assert!(InfoRequest::parse(&data[..cut.index(data.len())]).is_err());
        }
    }
}
