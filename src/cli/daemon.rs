//! The daemon, and calling it by hand.

use clap::Args;

/// `serve`
#[derive(Debug, Clone, Copy, Args)]
pub struct Serve {}

/// `call`
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
