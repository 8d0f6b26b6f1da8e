//! No test: prints how long things take. `cargo test --release --test operation speed -- --nocapture`
