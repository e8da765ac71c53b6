//! The web server of the image `welcome`: one thread, one poll(2) loop, no files but a few in `/proc`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | a page about the sandbox that the server runs in |
//! | `GET /info.json` | the same facts for programs |
//! | `GET /healthz` | `ok` |
//! | `GET /bytes/N` | the first N bytes of the stream that [`pattern`] defines |
//! | `POST /sha256` | SHA-256 of the body in hex; without a `Content-Length` the body ends where the client half-closes |
//! | `POST /half-close` | answers, half-closes, then reads to the client's end and logs how many bytes came |
//!
//! Way of a request: [`server`] waits for sockets and hands a ready one to its [`connection`], which cuts requests out
//! of the bytes ([`request`]), routes them ([`answer`]) and sends what comes out.

pub mod answer;
pub mod connection;
pub mod facts;
pub mod pattern;
pub mod request;
pub mod server;
