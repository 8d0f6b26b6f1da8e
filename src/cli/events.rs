//! `regen events`

use std::time::Duration;

use clap::Args;

use crate::ids::ContainerId;

/// `events`
#[derive(Debug, Args)]
pub struct Events {
    /// Print the numbers of now, once
    #[arg(long)]
    pub stats: bool,
    /// The time between two looks: 5s, 500ms, 1m30s
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub interval: Duration,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
}

/// Numbers and units in a row, as Go writes durations.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("'{text}' is no duration like 5s or 1m30s");
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let value: f64 = rest[..digits].parse().map_err(|_| refuse())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += value
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(refuse()),
            };
        rest = &rest[unit..];
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("duration interval must be greater than 0".to_owned()),
        Err(_) => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        assert_eq!(parse_duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(parse_duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("1.5ms").unwrap(), Duration::from_micros(1500));
        for wrong in ["", "0s", "5", "-5s", "5x", "s", "1e400s", "99999999999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
