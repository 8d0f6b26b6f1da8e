//! Programs that ran before they were a service.
