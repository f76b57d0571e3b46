//! A rank's part of masters and moments as one safetensors file: `{unit}.master`, `{unit}.exp_avg`,
//! `{unit}.exp_avg_sq`, each `[end - start]` fp32.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use bytemuck::cast_slice;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View};

use super::error::{Result, damaged, reading};
use super::weights::write_safetensors;
use crate::data::MappedFile;
use crate::engine::Memory;

const PARTS: [&str; 3] = ["master", "exp_avg", "exp_avg_sq"];

/// Name of the file of `dp_rank`.
pub(super) fn file_name(dp_rank: usize, dp_size: usize) -> String {
    format!("optimizer-{:05}-of-{dp_size:05}.safetensors", dp_rank + 1)
}

/// Which elements of each unit this rank writes; units of which it has none are left out.
pub(super) fn ranges(memory: &Memory) -> BTreeMap<String, [usize; 2]> {
    let ranges = (0..memory.num_units()).map(|unit| (memory.layout(unit).name.clone(), memory.saved(unit)));
    ranges.filter(|(_, range)| !range.is_empty()).map(|(name, range)| (name, [range.start, range.end])).collect()
}

/// Writes this rank's part, synced.
pub(super) fn write(path: &Path, memory: &Memory) -> Result<()> {
    let mut tensors = Vec::new();
    for unit in (0..memory.num_units()).filter(|&unit| !memory.saved(unit).is_empty()) {
        for (part, values) in PARTS.iter().zip(memory.state(unit)) {
            let name = format!("{}.{part}", memory.layout(unit).name);
            tensors.push((name, Values { shape: [values.len()], values }));
        }
    }
    write_safetensors(path, tensors)
}

/// Reads what this rank needs of one file: its own part, and all masters of units that it keeps whole.
pub(super) fn read(path: &Path, ranges: &BTreeMap<String, [usize; 2]>, memory: &mut Memory) -> Result<()> {
    let map = MappedFile::open(path).map_err(reading(path))?;
    let tensors = SafeTensors::deserialize(map.as_ref()).map_err(|err| damaged(path, err.to_string()))?;
    for unit in 0..memory.num_units() {
        let name = memory.layout(unit).name.clone();
        let Some(&[start, end]) = ranges.get(&name) else { continue };
        let mut parts = Vec::new();
        for part in PARTS {
            let name = format!("{name}.{part}");
            let view = tensors.tensor(&name).map_err(|err| damaged(path, format!("{name}: {err}")))?;
            if view.dtype() != Dtype::F32 || start > end || view.shape() != [end - start] {
                let found = format!("{:?} {:?}", view.dtype(), view.shape());
                return Err(damaged(path, format!("{name} is {found}, the manifest says F32 [{start}..{end}]")));
            }
            parts.push(view.data());
        }
        let owned = memory.owned(unit);
        let own = owned.start.clamp(start, end)..owned.end.clamp(start, end);
        let bytes = (own.start - start) * 4..(own.end - start) * 4;
        if memory.keeps_whole(unit) {
            memory.load_masters(unit, start, &floats(parts[0]));
        } else {
            memory.load_masters(unit, own.start, &floats(&parts[0][bytes.clone()]));
        }
        memory.load_moments(unit, own.start, &floats(&parts[1][bytes.clone()]), &floats(&parts[2][bytes]));
    }
    Ok(())
}

/// fp32 values as they lie in a file.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

struct Values<'a> {
    shape: [usize; 1],
    values: &'a [f32],
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(cast_slice(self.values))
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}
