//! Finds the tensors of a PyTorch file (`pytorch_model.bin`) without running anything in it: an archive (zip) of storages as they lie in memory,
//! and a pickle that says which tensors lie in them (PyTorch 1.6 and later, `torch.save`).

mod pickle;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::headers::TensorHeader;
use pickle::PickledTensor;

/// The first bytes of an archive.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

/// Longest pickle that is read, and longest entry beside it.
const PICKLE_BYTES_MAX: u64 = 100_000_000;

/// The tensors in `file`, which lies at `path`, by name; or what is wrong with it.
pub(super) fn tensors(path: &Path, file: File) -> Result<Vec<(String, TensorHeader)>, String> {
    let file_bytes = file.metadata().map_err(|error| error.to_string())?.len();
    let mut archive = ZipArchive::new(file).map_err(|error| format!("no archive, or cut short: {error}"))?;
    let names = archive.file_names().map(|name| name.map(|name| name.into_owned()));
    let names: Vec<String> = names.collect::<Result<_, _>>().map_err(|error| format!("a name in it: {error}"))?;
    let prefix =
        names.iter().find_map(|name| name.strip_suffix("data.pkl")).ok_or("has no data.pkl: not by torch.save")?;
    let pickle = read(&mut archive, &format!("{prefix}data.pkl"))?;
    let order = format!("{prefix}byteorder");
    if names.contains(&order) && read(&mut archive, &order)? != b"little" {
        return Err("was written with another order of bytes".into());
    }
    let mut storages = HashMap::new();
    let mut header = |(name, tensor): (String, PickledTensor)| {
        let entry = format!("{prefix}data/{}", tensor.storage);
        let [begin, end] = match storages.get(&entry) {
            Some(place) => *place,
            None => *storages.entry(entry.clone()).or_insert(place(&mut archive, &entry)?),
        };
        let header =
            of_tensor(path, &tensor, begin, end.min(file_bytes)).map_err(|rule| format!("tensor {name}: {rule}"))?;
        Ok((name, header))
    };
    pickle::tensors(&pickle)?.into_iter().map(&mut header).collect()
}

fn read(archive: &mut ZipArchive<File>, name: &str) -> Result<Vec<u8>, String> {
    let entry = archive.by_name(name).map_err(|error| format!("{name}: {error}"))?;
    let mut bytes = vec![];
    entry.take(PICKLE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() as u64 > PICKLE_BYTES_MAX {
        return Err(format!("{name} has more than {PICKLE_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

/// The first byte of an entry's data in the file, and the one behind it.
fn place(archive: &mut ZipArchive<File>, name: &str) -> Result<[u64; 2], String> {
    let entry = archive.by_name(name).map_err(|error| format!("{name}: {error}"))?;
    if entry.compression() != CompressionMethod::Stored {
        return Err(format!("{name} is compressed, which torch.save never does"));
    }
    let begin = entry.data_start().ok_or_else(|| format!("{name}: its place is not known"))?;
    Ok([begin, begin.saturating_add(entry.size())])
}

/// The header of a tensor whose storage lies from `begin` to `end`.
fn of_tensor(path: &Path, tensor: &PickledTensor, begin: u64, end: u64) -> Result<TensorHeader, String> {
    let PickledTensor { class, offset, shape, stride, .. } = tensor;
    let (dtype, bytes) = element(class).ok_or_else(|| format!("lies in a {class}, which is not read"))?;
    if !lies_row_by_row(shape, stride) {
        return Err("does not lie row by row: save it with .contiguous()".into());
    }
    let numel = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
    let place = |elements: u64| elements.checked_mul(bytes).and_then(|bytes| begin.checked_add(bytes));
    let last = numel.and_then(|numel| offset.checked_add(numel)).and_then(place);
    let (Some(first), Some(last)) = (place(*offset), last.filter(|last| *last <= end)) else {
        return Err(format!("has shape {shape:?}, and its storage is too short for that"));
    };
    let shape = shape.iter().map(|size| *size as usize).collect();
    Ok(TensorHeader { file: path.to_owned(), dtype: dtype.to_owned(), shape, begin: first, end: last })
}

/// safetensors' name of a storage's type, and the bytes of an element.
fn element(class: &str) -> Option<(&'static str, u64)> {
    Some(match class {
        "BFloat16Storage" => ("BF16", 2),
        "HalfStorage" => ("F16", 2),
        "FloatStorage" => ("F32", 4),
        "DoubleStorage" => ("F64", 8),
        "LongStorage" => ("I64", 8),
        "IntStorage" => ("I32", 4),
        "ByteStorage" => ("U8", 1),
        "BoolStorage" => ("BOOL", 1),
        _ => return None,
    })
}

/// Whether neighbours in the last dim are neighbours, and rows follow each other. The stride of a dim of one does not count.
fn lies_row_by_row(shape: &[u64], stride: &[u64]) -> bool {
    let mut expected = 1u64;
    let is_dense = shape.iter().zip(stride).rev().all(|(size, stride)| {
        let is_next = *size == 1 || *stride == expected;
        expected = expected.saturating_mul(*size);
        is_next
    });
    is_dense && shape.len() == stride.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_that_follow_each_other_are_one_range() {
        for (shape, stride, is_dense) in [
            (&[2, 3][..], &[3, 1][..], true),
            (&[2, 3], &[1, 2], false),
            (&[2, 3], &[4, 1], false),
            (&[1, 3], &[77, 1], true),
            (&[], &[], true),
            (&[5], &[1], true),
            (&[5], &[2], false),
            (&[2, 3], &[1], false),
        ] {
            assert_eq!(lies_row_by_row(shape, stride), is_dense, "{shape:?} {stride:?}");
        }
    }

    #[test]
    fn a_tensor_lies_within_its_storage() {
        let tensor = |offset: u64, shape: &[u64]| PickledTensor {
            storage: "0".into(),
            class: "HalfStorage".into(),
            offset,
            shape: shape.to_vec(),
            stride: vec![shape.get(1).copied().unwrap_or(1), 1][2 - shape.len()..].to_vec(),
        };
        let header = |tensor: &PickledTensor| of_tensor("w.bin".as_ref(), tensor, 100, 124);
        let found = header(&tensor(2, &[2, 5])).unwrap();
        assert_eq!((found.begin, found.end, found.dtype.as_str()), (104, 124, "F16"));
        for outside in [tensor(3, &[2, 5]), tensor(u64::MAX, &[1]), tensor(0, &[u64::MAX, 3])] {
            assert!(header(&outside).unwrap_err().contains("its storage is too short"), "{outside:?}");
        }
        let other = PickledTensor { class: "QInt8Storage".into(), ..tensor(0, &[1]) };
        assert_eq!(header(&other).unwrap_err(), "lies in a QInt8Storage, which is not read");
    }
}
