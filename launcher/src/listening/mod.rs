//! What everything that listens needs: how many descriptors it may take, and who has to go when strangers crowd in.
//!
//! In reading order: [`newcomers`] (connections that have not said yet who they are), [`descriptors`] (the process's limit).

pub mod descriptors;
pub mod newcomers;
