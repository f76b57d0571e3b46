//! A rank's part of masters and moments as one safetensors file: `{unit}.master`, `{unit}.exp_avg`,
//! `{unit}.exp_avg_sq`, each fp32, the elements of the unit's ranges one after the other.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use bytemuck::cast_slice;
use proto::layout::Piece;
use proto::manifest::UnitRanges;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View};

use super::error::{Result, damaged, reading};
use super::weights::write_safetensors;
use crate::data::MappedFile;
use crate::engine::Memory;

const PARTS: [&str; 3] = ["master", "exp_avg", "exp_avg_sq"];

/// Name of a rank's file.
pub(super) fn file_name(rank: usize, world_size: usize) -> String {
    format!("optimizer-{:05}-of-{world_size:05}.safetensors", rank + 1)
}

/// Which elements of each unit this rank writes; units of which it has none are left out.
pub(super) fn ranges(memory: &Memory) -> UnitRanges {
    let whole = |piece: &Piece| [piece.whole.start, piece.whole.end];
    let of_unit = |unit| (memory.layout(unit).name.clone(), memory.saved(unit).iter().map(whole).collect());
    let ranges = (0..memory.num_units()).map(of_unit);
    ranges.filter(|(_, ranges): &(_, Vec<_>)| !ranges.is_empty()).collect()
}

/// Writes this rank's part.
pub(super) fn write(path: &Path, memory: &Memory) -> Result<()> {
    let mut tensors = Vec::new();
    for unit in 0..memory.num_units() {
        let pieces = memory.saved(unit);
        let states = pieces.iter().map(|piece| memory.state(unit, piece.local..piece.local + piece.whole.len()));
        let states: Vec<[&[f32]; 3]> = states.collect();
        if states.is_empty() {
            continue;
        }
        for (idx, part) in PARTS.into_iter().enumerate() {
            let name = format!("{}.{part}", memory.layout(unit).name);
            tensors.push((name, Values::new(states.iter().map(|state| state[idx]).collect())));
        }
    }
    write_safetensors(path, tensors)
}

/// Reads what this rank needs of one file: its own part, and all masters of units that it keeps whole.
pub(super) fn read(path: &Path, ranges: &UnitRanges, memory: &mut Memory) -> Result<()> {
    let map = MappedFile::open(path).map_err(reading(path))?;
    let tensors = SafeTensors::deserialize(map.as_ref()).map_err(|err| damaged(path, err.to_string()))?;
    for unit in 0..memory.num_units() {
        let name = memory.layout(unit).name.clone();
        let Some(ranges) = ranges.get(&name) else { continue };
        let numel: usize = ranges.iter().map(|[start, end]| end.saturating_sub(*start)).sum();
        let mut parts = Vec::new();
        for part in PARTS {
            let name = format!("{name}.{part}");
            let view = tensors.tensor(&name).map_err(|err| damaged(path, format!("{name}: {err}")))?;
            if view.dtype() != Dtype::F32 || view.shape() != [numel] {
                let found = format!("{:?} {:?}", view.dtype(), view.shape());
                return Err(damaged(path, format!("{name} is {found}, the manifest says F32 [{numel}]")));
            }
            parts.push(view.data());
        }
        let [masters, moments] = memory.needed(unit);
        for (local, file) in shared(ranges, &masters) {
            memory.load_masters(unit, local, &floats(&parts[0][file]));
        }
        for (local, file) in shared(ranges, &moments) {
            memory.load_moments(unit, local, &floats(&parts[1][file.clone()]), &floats(&parts[2][file]));
        }
        // A resume needs no more memory than training, whatever the file's size.
        map.release().map_err(reading(path))?;
    }
    Ok(())
}

/// What the ranges of a file and the pieces of a rank have in common: where it begins in the rank's flat buffer, and its
/// bytes in the file.
fn shared(ranges: &[[usize; 2]], pieces: &[Piece]) -> Vec<(usize, Range<usize>)> {
    let mut shared = Vec::new();
    let mut written = 0;
    for &[start, end] in ranges {
        for Piece { local, whole } in pieces {
            let (from, to) = (start.max(whole.start), end.min(whole.end));
            if from < to {
                let in_file = written + (from - start);
                shared.push((local + (from - whole.start), in_file * 4..(in_file + to - from) * 4));
            }
        }
        written += end.saturating_sub(start);
    }
    shared
}

/// fp32 values as they lie in a file.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// fp32 values of a file, some of which may lie apart in memory.
struct Values<'a> {
    shape: [usize; 1],
    parts: Vec<&'a [f32]>,
}

impl<'a> Values<'a> {
    fn new(parts: Vec<&'a [f32]>) -> Self {
        Self { shape: [parts.iter().map(|part| part.len()).sum()], parts }
    }
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.parts[..] {
            [values] => Cow::Borrowed(cast_slice(values)),
            _ => Cow::Owned(self.parts.iter().flat_map(|part| cast_slice(part)).copied().collect()),
        }
    }

    fn data_len(&self) -> usize {
        self.shape[0] * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_finds_its_pieces_wherever_a_file_has_them() {
        let pieces = [Piece { local: 0, whole: 10..20 }, Piece { local: 16, whole: 40..50 }];
        assert_eq!(shared(&[[0, 100]], &pieces), [(0, 40..80), (16, 160..200)]);
        assert_eq!(shared(&[[5, 15], [45, 47]], &pieces), [(0, 20..40), (21, 40..48)]);
        assert_eq!(shared(&[[20, 40]], &pieces), []);
    }
}
