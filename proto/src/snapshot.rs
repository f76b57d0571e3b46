//! Snapshots: ranks keep the state of their newest steps in memory that the launcher owns, so that a restart loses no
//! more than the step that was under way. Pure: this file lays out that memory and writes and reads its headers.
//!
//! ```text
//! memory   region of rank 0 | region of rank 1 | ...
//! region   headers of slot 0 and slot 1 (a page) | slot 0 | slot 1
//! slot     by unit: masters, first moments, second moments (fp32) of the elements that this rank is the one to save
//! ```
//!
//! - SNP-1 A slot counts only under a whole header, which is erased before the slot is written and comes back last.
//! - SNP-2 Snapshots of a step are in all regions or not used: ranks meet in every step, so the newest that all have is at
//!   most one older than the newest that any has, and nobody has begun to overwrite it. Before an attempt makes its first,
//!   each rank takes out of use what an earlier attempt has left of later steps.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::layout::rank_layout;
use crate::manifest::{Progress, UnitRanges};
use crate::plan::Plan;
use crate::sharding::Sharding;
use crate::validation::{Scored, Validations};

/// Masters, first and second moments.
pub const PARTS: usize = 3;
/// Slots of a rank: the snapshot that counts, and the one that is written.
pub const SLOTS: usize = 2;
/// Regions and slots begin at multiples of this: a page.
const ALIGN_BYTES: u64 = 4096;

/// The places in the memory for snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotLayout {
    regions: Vec<Region>,
}

/// The memory of one rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    start: u64,
    slot_bytes: u64,
    /// By unit, which of its elements are there.
    pub ranges: UnitRanges,
    /// By unit, its first byte in a slot.
    offsets: BTreeMap<String, u64>,
}

impl SnapshotLayout {
    /// Of a job that follows `plan`.
    pub fn of(plan: &Plan) -> Self {
        let mut start = 0;
        let regions = (0..plan.mesh.world_size()).map(|rank| {
            let region = Region::new(start, saved_ranges(plan, rank));
            start = region.slot(SLOTS);
            region
        });
        Self { regions: regions.collect() }
    }

    /// The regions by rank.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// All memory of it.
    pub fn bytes(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.slot(SLOTS))
    }
}

impl Region {
    fn new(start: u64, ranges: UnitRanges) -> Self {
        let mut end = 0;
        let place = |(unit, ranges): (&String, &Vec<[usize; 2]>)| {
            let offset = end;
            end += (PARTS * numel(ranges) * size_of::<f32>()) as u64;
            (unit.clone(), offset)
        };
        let offsets = ranges.iter().map(place).collect();
        Self { start, offsets, ranges, slot_bytes: end.next_multiple_of(ALIGN_BYTES) }
    }

    /// First byte of a slot's header.
    pub fn header(&self, slot: usize) -> u64 {
        self.start + (slot * Header::BYTES) as u64
    }

    /// First byte of one part (master, first, second moment) of a unit of which this rank saves something.
    pub fn part(&self, slot: usize, unit: &str, part: usize) -> u64 {
        let numel = numel(&self.ranges[unit]);
        self.slot(slot) + self.offsets[unit] + (part * numel * size_of::<f32>()) as u64
    }

    fn slot(&self, slot: usize) -> u64 {
        self.start + ALIGN_BYTES + slot as u64 * self.slot_bytes
    }
}

/// Bytes of memory that a job's snapshots take; 0 where it takes none.
pub fn snapshot_bytes(plan: &Plan) -> u64 {
    if plan.snapshots.are_taken() { SnapshotLayout::of(plan).bytes() } else { 0 }
}

/// Returns the ranges that only this rank saves, as in a checkpoint.
fn saved_ranges(plan: &Plan, rank: usize) -> UnitRanges {
    let coord = plan.mesh.coord(rank);
    let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, coord.dp);
    let of_unit = |layout: crate::layout::UnitLayout| {
        let shard = sharding.shard(sharding.padded(layout.trained_numel()));
        let ranges = layout.primary_pieces(shard).into_iter().map(|piece| [piece.whole.start, piece.whole.end]);
        (layout.name.clone(), ranges.collect::<Vec<_>>())
    };
    let units = rank_layout(plan, coord).into_iter().map(of_unit);
    units.filter(|(_, ranges)| !ranges.is_empty()).collect()
}

fn numel(ranges: &[[usize; 2]]) -> usize {
    ranges.iter().map(|[start, end]| end - start).sum()
}

/// The header that says that a slot is whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    /// The progress of the run at its step.
    pub progress: Progress,
    /// xxh3 of the slot's elements, in the order in which they lie there.
    pub checksum: u64,
}

/// Numbers of a header, without their checksum.
const NUMBERS: usize = 10;

impl Header {
    /// Length in memory.
    pub const BYTES: usize = (NUMBERS + 1) * size_of::<u64>();
    /// The bytes in the place of a header whose slot does not count.
    pub const ERASED: [u8; Self::BYTES] = [0; Self::BYTES];

    /// As it lies in memory: numbers and their own checksum.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = Self::ERASED;
        for (to, number) in bytes.chunks_exact_mut(8).zip(self.numbers()) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        let seal = xxh3_64(&bytes[..8 * NUMBERS]);
        bytes[8 * NUMBERS..].copy_from_slice(&seal.to_le_bytes());
        bytes
    }

    /// `None` where it is erased or torn.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let number = |idx: usize| u64::from_le_bytes(bytes[idx * 8..][..8].try_into().expect("8 bytes"));
        (xxh3_64(&bytes[..8 * NUMBERS]) == number(NUMBERS)).then(|| Self::of_numbers(std::array::from_fn(number)))
    }

    fn numbers(self) -> [u64; NUMBERS] {
        let Progress { step, rows, label_tokens, validations } = self.progress;
        let Validations { step: validated, loss, best, to_beat, without_improvement } = validations;
        // A loss that is there is a number.
        let bits = |loss: Option<f64>| loss.unwrap_or(f64::NAN).to_bits();
        let (best_step, best_loss) = (best.map_or(0, |best| best.step), bits(best.map(|best| best.loss)));
        let (loss, to_beat) = (bits(loss), bits(to_beat));
        [step, rows, label_tokens, self.checksum, validated, loss, best_step, best_loss, to_beat, without_improvement]
    }

    fn of_numbers(numbers: [u64; NUMBERS]) -> Self {
        let [step, rows, label_tokens, checksum, validated, loss, best_step, best_loss, to_beat, without_improvement] =
            numbers;
        let loss_of = |bits: u64| Some(f64::from_bits(bits)).filter(|loss| !loss.is_nan());
        let validations = Validations {
            step: validated,
            loss: loss_of(loss),
            best: loss_of(best_loss).map(|loss| Scored { step: best_step, loss }),
            to_beat: loss_of(to_beat),
            without_improvement,
        };
        Self { progress: Progress { step, rows, label_tokens, validations }, checksum }
    }
}

/// The newest snapshot that every rank has, of their slots' headers by rank. SNP-2.
pub fn newest(headers: &[[Option<Header>; SLOTS]]) -> Option<Progress> {
    let (first, others) = headers.split_first()?;
    let has =
        |slots: &[Option<Header>; SLOTS], progress| slots.iter().flatten().any(|header| header.progress == progress);
    let in_all = |progress: &Progress| others.iter().all(|slots| has(slots, *progress));
    first.iter().flatten().map(|header| header.progress).filter(in_all).max_by_key(|progress| progress.step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TrainConfig;
    use crate::layout::{TensorSplit, model_layout};
    use crate::memory::Room;
    use crate::model_config::ModelConfig;
    use crate::resolve::{Draft, Machine, World};

    fn plan(extra: &str, world_size: usize) -> Plan {
        let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 24, "intermediate_size": 40,
                       "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 37,
                       "tie_word_embeddings": true}"#;
        let model = ModelConfig::parse("config.json".as_ref(), text).unwrap();
        let toml = format!("[model]\npath = \"m\"\n[data]\ntrain = \"d\"\n{extra}");
        let config = TrainConfig::parse("train.toml".as_ref(), &toml, &[]).unwrap();
        let world = World {
            world_size,
            cores: 8,
            omp_num_threads: None,
            current_dir: "/".into(),
            machine: Machine::This { gpus: Ok(0) },
            room: Room::default(),
        };
        Draft::new(&config, world, model).unwrap().without_data().unwrap()
    }

    #[test]
    fn every_element_is_in_one_region() {
        for (extra, world_size) in [
            ("", 1),
            ("[zero]\nstage = 0\n", 3),
            ("[zero]\nstage = 3\n", 3),
            ("[parallel]\ntensor = 4\n", 8),
            ("[parallel]\npipeline = 2\ntensor = 2\n[zero]\nstage = 2\n", 8),
        ] {
            let plan = plan(extra, world_size);
            let layout = SnapshotLayout::of(&plan);
            for unit in model_layout(&plan.model.config, TensorSplit::WHOLE) {
                let regions = layout.regions().iter();
                let mut ranges: Vec<_> = regions.filter_map(|region| region.ranges.get(&unit.name)).flatten().collect();
                ranges.sort();
                let end = ranges.iter().fold(0, |end, [start, to]| if *start == end { *to } else { usize::MAX });
                assert_eq!(end, unit.numel(), "{extra} {}", unit.name);
            }
        }
    }

    #[test]
    fn nothing_overlaps() {
        let layout = SnapshotLayout::of(&plan("[zero]\nstage = 2\n[parallel]\npipeline = 2\n", 4));
        let mut spans = vec![];
        for region in layout.regions() {
            for slot in 0..SLOTS {
                spans.push((region.header(slot), region.header(slot) + Header::BYTES as u64));
                for (unit, ranges) in &region.ranges {
                    let bytes = (numel(ranges) * 4) as u64;
                    spans.extend((0..PARTS).map(|part| region.part(slot, unit, part)).map(|at| (at, at + bytes)));
                }
            }
        }
        spans.sort();
        assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{spans:?}");
        assert!(spans.last().unwrap().1 <= layout.bytes());
    }

    #[test]
    fn a_torn_header_is_none() {
        let validations = Validations {
            step: 6,
            loss: None,
            best: Some(Scored { step: 4, loss: 1.5 }),
            to_beat: Some(1.75),
            without_improvement: 2,
        };
        let header = Header { progress: Progress { step: 7, rows: 56, label_tokens: 900, validations }, checksum: 3 };
        let none = Header { progress: Progress { step: 7, ..Progress::default() }, checksum: 3 };
        assert_eq!(Header::from_bytes(&none.to_bytes()), Some(none));
        let bytes = header.to_bytes();
        assert_eq!(Header::from_bytes(&bytes), Some(header));
        assert_eq!(Header::from_bytes(&Header::ERASED), None);
        for end in 0..Header::BYTES {
            for rest in [Header::ERASED, Header { checksum: 4, ..header }.to_bytes()] {
                let mut torn = rest;
                torn[..end].copy_from_slice(&bytes[..end]);
                let read = Header::from_bytes(&torn);
                assert!(read.is_none() || torn == rest || torn == bytes, "{end}");
            }
        }
    }

    #[test]
    fn the_newest_that_all_have_counts() {
        let header =
            |step| Some(Header { progress: Progress { step, rows: 8 * step, ..Progress::default() }, checksum: step });
        let newest = |headers: &[[Option<Header>; SLOTS]]| newest(headers).map(|progress| progress.step);
        assert_eq!(newest(&[[header(4), header(5)], [header(4), header(5)]]), Some(5));
        assert_eq!(newest(&[[header(4), header(5)], [header(4), None]]), Some(4), "one is still writing");
        assert_eq!(newest(&[[None, header(5)], [header(6), header(5)]]), Some(5));
        assert_eq!(newest(&[[None, header(5)], [header(6), None]]), None);
        assert_eq!(newest(&[[None, None]]), None);
        assert_eq!(newest(&[]), None);
    }
}
