//! job-schema
