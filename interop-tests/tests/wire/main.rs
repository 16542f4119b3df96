//! Tests over real sockets, in one binary so that they link once.
//!
//! Each module is named by what it proves. The parts that a test starts are in the library of this package. It does NOT
//! hold unit tests.

mod interop_server;
