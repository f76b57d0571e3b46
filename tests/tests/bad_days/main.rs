//! Bad days of a job: it is stopped, frozen, killed with all that watches it, its disk is full, its folder moves away.

mod freezes;
mod full_disks;
mod left_behind;
mod stops;
