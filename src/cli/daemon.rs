//! The daemon, and calling it by hand.

use std::path::PathBuf;

use clap::Args;

use crate::error::Error;
use crate::ids::NodeName;
use crate::node::Label;

/// Run the daemon
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Be a node among others, by the etcd that they share: etcd://HOST:PORT[,HOST:PORT…]
    #[arg(long, value_name = "URL")]
    pub cluster: Option<String>,
    /// What this node is called; its certificate's name, or else the host's
    #[arg(long, value_name = "NAME", value_parser = super::node::parse_node)]
    pub node: Option<NodeName>,
    /// What others may choose this node by (may be given again)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<Label>,
    /// Where other nodes reach this one, in numbers; the same interfaces, encrypted
    #[arg(long, value_name = "HOST:PORT", requires = "certs")]
    pub address: Option<String>,
    /// The directory with ca.pem, node.pem and node.key, which say who this node is and whom it believes
    #[arg(long, value_name = "DIR", requires = "address")]
    pub certs: Option<PathBuf>,
    /// Tell metrics (OpenMetrics over HTTP, GET /metrics) to everybody who can connect: tcp://HOST:PORT or unix:/PATH
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
}

/// Call a method of the daemon
#[derive(Debug, Args)]
pub struct Call {
    /// Ask for every answer of a method that answers more than once
    #[arg(long)]
    pub more: bool,
    /// Print each answer in one line
    #[arg(long)]
    pub json: bool,
    /// INTERFACE.METHOD, or an interface, whose description is then printed
    #[arg(value_name = "METHOD")]
    pub method: String,
    /// A parameter: VALUE is JSON, or else a text; KEY may be a path such as a.b
    #[arg(value_name = "KEY=VALUE")]
    pub parameters: Vec<String>,
}

fn parse_label(text: &str) -> Result<Label, String> {
    text.parse().map_err(|error: Error| error.to_string())
}
