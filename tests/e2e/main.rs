//! The product from outside: the release binary, and clients that know nothing of it.

mod harness;
