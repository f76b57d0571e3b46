//! A rank's part of masters and moments as one safetensors file: `{unit}.master`, `{unit}.exp_avg`,
//! `{unit}.exp_avg_sq`, each fp32, the elements of the unit's ranges one after the other.

use std::path::Path;

use bytemuck::cast_slice;
use proto::layout::{Overlap, Piece, overlaps};
use proto::manifest::UnitRanges;
use proto::model_config::DiskDType;
use proto::weight_files::TensorEntry;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::error::{Result, damaged, reading};
use super::safetensors_writer::SafetensorsWriter;
use crate::data::MappedFile;
use crate::device::Section;
use crate::engine::Memory;

/// Elements that are written at a time.
const CHUNK_NUMEL: usize = 1 << 18;

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

/// Writes this rank's part, a chunk at a time.
pub(super) fn write(path: &Path, memory: &Memory) -> Result<()> {
    let mut tensors: Vec<(TensorEntry, Vec<Section>)> = Vec::new();
    for unit in 0..memory.num_units() {
        let pieces = memory.saved(unit);
        let states = pieces.iter().map(|piece| memory.state(unit, piece.local..piece.local + piece.whole.len()));
        let states: Vec<[Section; 3]> = states.collect();
        if states.is_empty() {
            continue;
        }
        for (idx, part) in PARTS.into_iter().enumerate() {
            let sections: Vec<Section> = states.iter().map(|state| state[idx].clone()).collect();
            let name = format!("{}.{part}", memory.layout(unit).name);
            tensors.push((entry(name, sections.iter().map(Section::numel).sum()), sections));
        }
    }
    let entries: Vec<TensorEntry> = tensors.iter().map(|(entry, _)| entry.clone()).collect();
    let mut writer = SafetensorsWriter::create(path, &entries)?;
    for section in tensors.iter().flat_map(|(_, sections)| sections) {
        section.read(CHUNK_NUMEL, |values| writer.write(cast_slice(values)))?;
    }
    writer.finish().map(drop)
}

fn entry(name: String, numel: usize) -> TensorEntry {
    TensorEntry { name, dtype: DiskDType::F32, shape: vec![numel], bytes: numel * size_of::<f32>() }
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
        let values = |part: usize, at: Overlap| floats(&parts[part][at.stored * 4..(at.stored + at.numel) * 4]);
        for at in overlaps(ranges, &masters) {
            memory.load_masters(unit, at.local, &values(0, at));
        }
        for at in overlaps(ranges, &moments) {
            memory.load_moments(unit, at.local, &values(1, at), &values(2, at));
        }
        // A resume needs no more memory than training, whatever the file's size.
        map.release().map_err(reading(path))?;
    }
    Ok(())
}

/// fp32 values as they lie in a file.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}
