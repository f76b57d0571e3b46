//! What everything that listens needs: how many descriptors it may take, who has to go when strangers crowd in, and how often
//! who guesses wrong is heard.
//!
//! In reading order: [`newcomers`] (connections that have not said yet who they are), [`guesses`] (those that have said it
//! wrong), [`descriptors`] (the process's limit).

pub mod descriptors;
pub mod guesses;
pub mod newcomers;
