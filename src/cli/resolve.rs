//! `regen resolve`

use clap::Args;

use crate::ids::Name;
use crate::service::choice::Wanted;

/// Find the newest version of a service that satisfies, or connect to it
#[derive(Debug, Args)]
pub struct Resolve {
    /// The service, and what its version has to satisfy: orders, orders@^1.2, orders@=1.2.3, 'orders@>=1, <3'
    #[arg(value_name = "NAME@REQ")]
    pub wanted: Wanted,
    /// The address with this name, in place of the first
    #[arg(long, value_name = "NAME")]
    pub listen: Option<Name>,
    /// Print all that is known, as JSON; with --watch an object for each change
    #[arg(long, conflicts_with = "connect")]
    pub json: bool,
    /// Connect, and execute COMMAND with the connected socket as descriptor 3 (LISTEN_FDS)
    #[arg(long, requires = "command")]
    pub connect: bool,
    /// Print versions that come and go, until it is interrupted
    #[arg(long, conflicts_with = "connect")]
    pub watch: bool,
    /// What gets the socket
    #[arg(last = true, value_name = "COMMAND", requires = "connect")]
    pub command: Vec<String>,
}
