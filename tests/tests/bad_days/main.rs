//! Bad days of a job: it is stopped, frozen, killed with all that watches it, its disk is full, its limits are tight, its folder moves away.

mod freezes;
mod full_disks;
mod left_behind;
mod limits;
mod stops;
mod ulimits;
