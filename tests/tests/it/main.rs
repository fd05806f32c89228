//! The one integration binary: a file per promise. One binary, because linking the house once is enough.
//!
//! | file | promise |
//! |---|---|
//! | `docs` | every command, example and link of the pages works |
//! | `licences` | what we build on may be given away, and there is one TLS stack |
//! | `tidy` | the house rules that a machine can see |

mod docs;
mod licences;
mod tidy;
