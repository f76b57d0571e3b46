//! Which of a machine's GPUs this job sees, and whether ranks can train on them. Pure.
//!
//! The numbers in `CUDA_VISIBLE_DEVICES` are taken as those of the PCI bus, which are the driver's and nvidia-smi's: ranks are started
//! with `CUDA_DEVICE_ORDER=PCI_BUS_ID`.

use std::fmt;

use proto::compute_capability::LEAST;

use super::{Gpu, Gpus};

/// The GPUs of a machine that a job sees, by their places in [`Gpus::Found`]: rank r has the r-th.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visible(Vec<usize>);

/// There are GPUs, and ranks cannot train on them: why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The driver does not answer.
    Silent(String),
    /// `CUDA_VISIBLE_DEVICES` names none of them.
    Hidden {
        /// Its value.
        value: String,
        /// How many there are.
        gpus: usize,
    },
    /// `CUDA_VISIBLE_DEVICES` names a part of one (MIG).
    Part {
        /// The name.
        name: String,
    },
    /// One that is seen is too old.
    TooOld {
        /// Its index.
        index: usize,
        /// Its name.
        name: String,
        /// Its compute capability.
        compute: (u32, u32),
    },
}

impl Visible {
    /// Those that `CUDA_VISIBLE_DEVICES` leaves; `None` if it is not set. None where there is no driver.
    ///
    /// # Errors
    /// There are some, and not one can be trained on: or one of those that are seen cannot.
    pub fn of(gpus: &Gpus, variable: Option<&str>) -> Result<Self, Unfit> {
        let all = match gpus {
            Gpus::NoDriver => return Ok(Self::default()),
            Gpus::Unusable(why) => return Err(Unfit::Silent(why.clone())),
            Gpus::Found { gpus, .. } => gpus,
        };
        if let Some(name) =
            variable.and_then(|names| names.split(',').map(str::trim).find(|name| name.starts_with("MIG-")))
        {
            return Err(Unfit::Part { name: name.to_owned() });
        }
        let seen = Self(variable.map_or_else(|| (0..all.len()).collect(), |names| named(all, names)));
        if let (Some(value), true) = (variable, seen.0.is_empty() && !all.is_empty()) {
            return Err(Unfit::Hidden { value: value.to_owned(), gpus: all.len() });
        }
        let too_old = |&&index: &&usize| all[index].compute.is_some_and(|compute| compute < LEAST);
        match seen.0.iter().find(too_old) {
            Some(&index) => {
                let Gpu { index, name, compute, .. } = &all[index];
                Err(Unfit::TooOld { index: *index, name: name.clone(), compute: compute.unwrap_or_default() })
            }
            None => Ok(seen),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The GPUs of the first `ranks` ranks, in their order.
    pub fn of_ranks<'a>(&self, gpus: &'a Gpus, ranks: usize) -> Vec<&'a Gpu> {
        let Gpus::Found { gpus, .. } = gpus else { return vec![] };
        self.0.iter().take(ranks).map(|&place| &gpus[place]).collect()
    }
}

/// The GPUs that a list names, by number or by the beginning of a UUID. CUDA stops at the first name that is none, and sees none at
/// all where a name comes again.
fn named(gpus: &[Gpu], names: &str) -> Vec<usize> {
    let mut seen = Vec::new();
    for name in names.split(',').map(str::trim) {
        let by_uuid = || {
            let has = |gpu: &Gpu| gpu.uuid.as_deref().is_some_and(|uuid| uuid.starts_with(name));
            if name.starts_with("GPU-") { gpus.iter().position(has) } else { None }
        };
        let by_index = name.parse().ok().filter(|&index: &usize| index < gpus.len());
        match by_index.or_else(by_uuid) {
            Some(index) if seen.contains(&index) => return vec![],
            Some(index) => seen.push(index),
            None => break,
        }
    }
    seen
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(why) => write!(f, "the NVIDIA driver does not answer: {why}"),
            Self::Hidden { value, gpus } => write!(f, "CUDA_VISIBLE_DEVICES={value:?} hides all {gpus}"),
            Self::Part { name } => {
                write!(f, "CUDA_VISIBLE_DEVICES names {name}, a part of a GPU, and ranks train on whole ones")
            }
            Self::TooOld { index, name, compute: (major, minor) } => {
                let (least, _) = LEAST;
                write!(
                    f,
                    "GPU {index} ({name}) has compute capability {major}.{minor}, and at least {least}.0 is needed; \
                     CUDA_VISIBLE_DEVICES can hide it"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(computes: &[(u32, u32)]) -> Gpus {
        let gpu = |(index, &compute): (usize, &(u32, u32))| Gpu {
            index,
            name: format!("card {index}"),
            uuid: Some(format!("GPU-{index}f93")),
            compute: Some(compute),
            ..Gpu::default()
        };
        let gpus = computes.iter().enumerate().map(gpu).collect();
        Gpus::Found { driver: "580".into(), cuda: None, gpus, links: vec![] }
    }

    fn seen(variable: Option<&str>) -> Result<Vec<usize>, Unfit> {
        Visible::of(&machine(&[(9, 0); 4]), variable).map(|visible| visible.0)
    }

    #[test]
    fn the_variable_chooses_and_orders() {
        assert_eq!(seen(None), Ok(vec![0, 1, 2, 3]));
        assert_eq!(seen(Some("2")), Ok(vec![2]));
        assert_eq!(seen(Some("3, 0")), Ok(vec![3, 0]));
        assert_eq!(seen(Some("GPU-2f9,1")), Ok(vec![2, 1]));
    }

    #[test]
    fn it_ends_at_the_first_name_that_is_none() {
        for (variable, expected) in [("0,-1,2", vec![0]), ("1,4,2", vec![1]), ("1,GPU-9,2", vec![1])] {
            assert_eq!(seen(Some(variable)), Ok(expected), "{variable}");
        }
        for nothing in ["", "-1", "none", "1,1,2"] {
            assert_eq!(seen(Some(nothing)), Err(Unfit::Hidden { value: nothing.into(), gpus: 4 }));
        }
    }

    #[test]
    fn a_part_of_a_gpu_is_no_gpu() {
        let told = Visible::of(&machine(&[(9, 0)]), Some("MIG-12ab")).unwrap_err().to_string();
        assert!(told.starts_with("CUDA_VISIBLE_DEVICES names MIG-12ab, a part of a GPU"), "{told}");
    }

    #[test]
    fn one_that_is_too_old_is_named_unless_it_is_hidden() {
        let mixed = machine(&[(9, 0), (7, 0)]);
        let text = Visible::of(&mixed, None).unwrap_err().to_string();
        assert!(text.starts_with("GPU 1 (card 1) has compute capability 7.0, and at least 8.0 is needed"), "{text}");
        assert_eq!(Visible::of(&mixed, Some("0")).map(|visible| visible.count()), Ok(1));
    }

    #[test]
    fn without_a_driver_there_are_none_and_a_silent_one_says_why() {
        assert_eq!(Visible::of(&Gpus::NoDriver, Some("0")), Ok(Visible::default()));
        let silent = Visible::of(&Gpus::Unusable("no permission".into()), None).unwrap_err();
        assert_eq!(silent.to_string(), "the NVIDIA driver does not answer: no permission");
    }

    #[test]
    fn ranks_have_them_in_their_order() {
        let machine = machine(&[(9, 0); 3]);
        let visible = Visible::of(&machine, Some("2,0")).unwrap();
        let names = |ranks| -> Vec<&str> {
            visible.of_ranks(&machine, ranks).into_iter().map(|gpu| gpu.name.as_str()).collect()
        };
        assert_eq!((names(1), names(2)), (vec!["card 2"], vec!["card 2", "card 0"]));
    }
}
