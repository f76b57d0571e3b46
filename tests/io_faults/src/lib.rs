//! A library for `LD_PRELOAD` that lets one call to the operating system fail, once: a full disk, a disk that is broken, no
//! process left, nobody who listens. It takes the place of the C library's functions, so the programs under test are those that
//! users have.
//!
//! `functions` has the functions that it replaces, `fault` says which of their calls can fail and how, `site` names the
//! place in the program that a call comes from, `play` records these places or strikes at one of them.
//!
//! Environment: `IO_FAULTS_RECORD` names a file to which every program adds the sites that it meets, a line each;
//! `IO_FAULTS_STRIKE` is a site's name, and the first call from it in the whole job fails; `IO_FAULTS_STRUCK` names the file that
//! is made then, which is how all processes know that it has happened. Programs other than dslaunch's are left alone.

#![allow(unsafe_code, reason = "it has the C interface of the C library")]

mod fault;
mod functions;
mod play;
mod site;
