"""What libnbd sees of a volume and of a view of it. Arguments: socket, file with the bytes of time zero."""

import errno
import sys

import nbd

SOCKET, REFERENCE = sys.argv[1:3]
with open(REFERENCE, "rb") as file:
    T0 = file.read()


def connect(name, structured=True):
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.set_request_structured_replies(structured)
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.set_strict_mode(0)
    handle.connect_unix(SOCKET)
    return handle


def refused(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, (call, arguments, error.errno, error.string)
        return
    raise AssertionError((call, arguments, "was not refused"))


def structured(handle, offset, length, flags=0):
    """Reads by chunks; gives the bytes and the number of chunks."""
    chunks = []

    def chunk(data, at, status, error):
        assert error.value == 0
        assert status in (nbd.READ_DATA, nbd.READ_HOLE), status
        chunks.append((at, len(data)))

    data = handle.pread_structured(length, offset, chunk, flags)
    assert sum(size for _, size in chunks) == length, chunks
    return bytes(data), len(chunks)


def statuses(handle, offset, length, flags=0):
    found = []

    def extent(context, start, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION, context
        assert error.value == 0
        found.extend(zip(entries[::2], entries[1::2]))

    handle.block_status(length, offset, extent, flags)
    return found


host, view = connect("vol"), connect("vol@s")

for handle in (host, view):
    assert handle.get_protocol() == "newstyle-fixed"
    assert handle.get_structured_replies_negotiated()
    assert handle.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    assert handle.can_df() and handle.can_multi_conn()
    assert handle.get_size() == len(T0)
    assert handle.get_block_size(nbd.SIZE_MINIMUM) <= 512
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) >= 32 << 20
    data, chunks = structured(handle, 1000, 300000)
    assert data == T0[1000:301000]
    data, chunks = structured(handle, 0, 1 << 20, nbd.CMD_FLAG_DF)
    assert data == T0[: 1 << 20] and chunks == 1, chunks
    # The largest payload that a server must be able to serve.
    largest = min(32 << 20, len(T0))
    assert bytes(handle.pread(largest, 0)) == T0[:largest]
    # Statuses cover what was asked for, in order, and one extent can be asked for alone.
    assert sum(size for size, _ in statuses(handle, 0, 1 << 20)) >= 1
    assert len(statuses(handle, 0, 1 << 20, nbd.CMD_FLAG_REQ_ONE)) == 1

assert host.can_zero() and host.can_trim() and host.can_fua() and host.can_flush() and host.can_cache()
assert not host.is_read_only() and view.is_read_only()

# Errors, each with its number, each leaving the connection good.
for handle in (host, view):
    refused(errno.EINVAL, handle.pread, 512, len(T0))
    refused(errno.EINVAL, handle.pread, 4096, len(T0) - 512)
    assert bytes(handle.pread(512, 0)) == T0[:512]
for number in (errno.ENOSPC, errno.EINVAL):
    try:
        host.pwrite(bytes(4096), len(T0) - 512)
    except nbd.Error as error:
        assert error.errnum in (errno.ENOSPC, errno.EINVAL), error.string
    else:
        raise AssertionError("a write past the end was not refused")
refused(errno.EPERM, view.pwrite, bytes(512), 0)
refused(errno.EPERM, view.zero, 4096, 0)
refused(errno.EPERM, view.trim, 4096, 0)
assert bytes(view.pread(512, 0)) == T0[:512]

# A change of every kind; the host sees it, the view does not.
new = bytearray(T0)


def put(offset, data, flags=0):
    host.pwrite(data, offset, flags)
    new[offset : offset + len(data)] = data


put(4096, b"\xa1" * 4096)
put(10001, b"\xb2" * 333)
put(len(T0) - 1, b"\xc3", nbd.CMD_FLAG_FUA)
for offset, length, flags in (
    (1 << 20, 65536, 0),
    ((1 << 20) + 100001, 77, nbd.CMD_FLAG_FUA),
    (2 << 20, 65536, nbd.CMD_FLAG_NO_HOLE),
):
    host.zero(length, offset, flags)
    new[offset : offset + length] = bytes(length)
try:
    host.zero(65536, 3 << 20, nbd.CMD_FLAG_FAST_ZERO)
    new[3 << 20 : (3 << 20) + 65536] = bytes(65536)
except nbd.Error as error:
    assert error.errnum == errno.ENOTSUP, error.string
host.cache(65536, 0)
host.flush()
assert bytes(host.pread(len(T0), 0)) == bytes(new)
assert bytes(view.pread(len(T0), 0)) == T0

# Many requests in flight on one connection, answered in any order.
waiting = {host: set(), view: set()}
buffers = []
for index in range(256):
    offset = index * 16384
    data = bytes([index % 255 + 1]) * 4096
    source = nbd.Buffer.from_bytearray(bytearray(data))
    buffers.append((source, None))
    waiting[host].add(host.aio_pwrite(source, offset))
    new[offset : offset + 4096] = data
    target = nbd.Buffer(16384)
    buffers.append((target, offset))
    waiting[view].add(view.aio_pread(target, offset))
while any(waiting.values()):
    for handle, cookies in waiting.items():
        if cookies:
            handle.poll(100)
        cookies.difference_update([cookie for cookie in cookies if handle.aio_command_completed(cookie)])
for buffer, offset in buffers:
    if offset is not None:
        assert bytes(buffer.to_bytearray()) == T0[offset : offset + 16384], offset
assert bytes(host.pread(len(T0), 0)) == bytes(new)
assert bytes(view.pread(len(T0), 0)) == T0

# A client without structured replies, and one that takes the oldest way in.
plain = connect("vol@s", structured=False)
assert not plain.get_structured_replies_negotiated()
assert bytes(plain.pread(1 << 20, 512)) == T0[512 : (1 << 20) + 512]
old = nbd.NBD()
old.set_export_name("vol")
old.set_handshake_flags(0)
old.set_opt_mode(False)
try:
    old.connect_unix(SOCKET)
    assert bytes(old.pread(4096, 0)) == bytes(new[:4096])
except nbd.Error as error:
    # A server may refuse clients that do not speak the fixed form.
    assert "fixed" in error.string or error.errnum in (0, errno.ENOTCONN, errno.ECONNRESET, errno.EINVAL), error.string

unknown = nbd.NBD()
unknown.set_export_name("nothing")
try:
    unknown.connect_unix(SOCKET)
except nbd.Error as error:
    assert error.errnum == errno.ENOENT or "export" in error.string, error.string
else:
    raise AssertionError("an unknown export was served")

for handle in (host, view, plain):
    handle.shutdown()
print("good")
