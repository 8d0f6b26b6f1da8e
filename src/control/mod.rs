//! The daemon's socket: varlink (<https://varlink.org>), JSON objects that end with a NUL, over a unix stream socket.
//!
//! ```text
//! client ──> server ── who is it (peer), is there room (limit) ──> a thread with a connection
//!                          connection: message ──> catalog ──> interface ──> answer, files
//! ```
//!
//! Callers are told apart by what the kernel says of them. Nothing of a message is done before all of it is there, and
//! nothing that a stranger sends is kept: who may do nothing is told so and closed without being read. Files that callers
//! send along are closed by the kernel, because nobody asks for them.

mod catalog;
pub mod client;
mod connection;
pub mod door;
mod interface;
pub mod life;
mod limit;
mod message;
pub mod metrics;
pub mod node;
pub mod operation;
mod peer;
pub mod remote;
mod server;
mod service;
mod status;
pub mod template;
pub mod version;
mod wire;

pub use catalog::Catalog;
pub use interface::{Answer, Call, Interface, Reach, Wake};
pub use limit::Limits;
pub use message::{CONTROL, Fault, Following, MESSAGE_MAX, Mode, STANDARD};
pub use node::{NODE, Neighbourhood, Nodes};
pub use operation::{OPERATION, Operations};
pub use peer::{Access, GROUP, Origin, Peer};
pub use server::{Entrance, Gauge, Server};
pub use service::{SERVICE, Service};
pub use status::{Control, PROTOCOL, Status};
pub use template::{TEMPLATE, Template};

/// The socket's name below the state root. While it is there, no container can have that id.
pub const SOCKET: &str = "run.regen.Control";
