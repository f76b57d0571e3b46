use proto::quantized::{Format, PackedMatrix, Quantizer};
use rank::kernels::{QuantizedMatrix, dequantize};
use tch::{Kind, Tensor};

use crate::harness::{TYPES, drawn, in_all_orders, launch, memory, same_bits, unwritten, value};

/// A part of a matrix that was drawn: its rows from `rows[0]` on and its columns from `columns[0]` on.
fn part(format: Format, whole: [usize; 2], rows: [usize; 2], columns: [usize; 2]) -> QuantizedMatrix {
    let [rows, columns] = [rows, columns].map(|[start, end]| start..end);
    let matrix = PackedMatrix { format, whole, rows, columns, start: 0 };
    let values = drawn(3, &whole.map(|size| size as i64), Kind::Float).reshape(-1);
    // Some are zero, some tiny.
    let _ = values.narrow(0, 0, values.size()[0].min(70)).zero_();
    let values = Vec::<f32>::try_from(values).unwrap();
    let mut bytes = vec![0xee; matrix.bytes()];
    let mut quantizer = Quantizer::new(&matrix, &mut bytes);
    quantizer.take(&values).unwrap();
    quantizer.finish();
    QuantizedMatrix { matrix, bytes: Tensor::from_slice(&bytes) }
}

fn check(of: &QuantizedMatrix) {
    let QuantizedMatrix { matrix, bytes } = of;
    let sections = [matrix.codes(), matrix.scale_codes(), matrix.scales()];
    let [codes, scale_codes, scales] = sections.map(|range| bytes.narrow(0, range.start as i64, range.len() as i64));
    for (end, kind) in TYPES {
        let mut expected = unwritten(&of.shape(), kind);
        dequantize(of, &mut expected);
        assert_eq!(expected.isnan().any().int64_value(&[]), 0);
        // As it is among others, in a matrix whose rows before it may end anywhere.
        let [found] = in_all_orders("dequantize", |order| {
            let rows = unwritten(&[of.shape()[0] + 1, of.shape()[1]], kind);
            let to = rows.narrow(0, 1, of.shape()[0]);
            let (name, grid, args) = match matrix.format {
                Format::Int8 => {
                    let args = vec![memory(&codes), memory(&scales), memory(&to), value(of.shape()[1] as i32)];
                    (format!("dequantize_int8_{end}"), of.shape()[0] as u32, args)
                }
                Format::Nf4 => {
                    let args = [memory(&codes), memory(&scale_codes), memory(&scales), memory(&to)].into_iter();
                    let numbers = [value(matrix.block_places()), value(matrix.numel() as u64)];
                    (format!("dequantize_nf4_{end}"), 3, args.chain(numbers).collect())
                }
            };
            let block = if matrix.format == Format::Nf4 { 256 } else { 64 };
            launch(&name, grid, block, order, args);
            assert_eq!(rows.get(0).isnan().all().int64_value(&[]), 1, "what is before it stays");
            [to.copy()]
        });
        assert!(same_bits(&found, &expected), "{matrix:?} {end}");
    }
}

#[test]
fn matrices_come_out_of_few_bits_as_on_the_cpu() {
    for format in [Format::Int8, Format::Nf4] {
        for whole in [[1, 1], [3, 13], [7, 64], [5, 172], [70, 300], [129, 256]] {
            check(&part(format, whole, [0, whole[0]], [0, whole[1]]));
        }
    }
}

#[test]
fn so_do_parts_of_them() {
    for format in [Format::Int8, Format::Nf4] {
        check(&part(format, [300, 128], [100, 300], [0, 128]));
        check(&part(format, [128, 33], [64, 128], [0, 33]));
        check(&part(format, [150, 256], [0, 150], [64, 192]));
    }
}
