//! SwiGLU and its backward.

use multiversion::multiversion;
use tch::Tensor;

use super::element::{Element, LANES, Wide};
use super::for_element;
use super::team;
use crate::device::host::{slice, slice_mut};

/// See [`crate::kernels::swiglu`].
pub fn swiglu(gate_up: &Tensor) -> Tensor {
    let (rows, ffn) = (gate_up.size()[0], gate_up.size()[1] / 2);
    let mut y = Tensor::empty([rows, ffn], (gate_up.kind(), gate_up.device()));
    for_element!(gate_up, E => {
        let ffn = ffn as usize;
        let rows = team::rows_per_part(rows as usize, 2 * ffn);
        let parts = slice::<E>(gate_up).chunks(rows * 2 * ffn).zip(slice_mut::<E>(&mut y).chunks_mut(rows * ffn));
        team::run(parts, |(gate_up, y)| forward(gate_up, y, ffn));
    });
    y
}

/// See [`crate::kernels::swiglu_backward`].
pub fn swiglu_backward(gate_up: &mut Tensor, dy: &Tensor) {
    let (rows, ffn) = (dy.size()[0] as usize, dy.size()[1] as usize);
    let rows = team::rows_per_part(rows, 2 * ffn);
    for_element!(dy, E => {
        let parts = slice_mut::<E>(gate_up).chunks_mut(rows * 2 * ffn).zip(slice::<E>(dy).chunks(rows * ffn));
        team::run(parts, |(gate_up, dy)| backward(gate_up, dy, ffn));
    });
}

/// See [`crate::kernels::swiglu_backward_again`].
pub fn swiglu_backward_again(gate_up: &mut Tensor, dy: &Tensor) -> Tensor {
    let y = swiglu(gate_up);
    swiglu_backward(gate_up, dy);
    y
}

#[inline(always)]
fn sigmoid<W: Wide>(x: W) -> W {
    let one = W::from_f64(1.0);
    one / (one + (-x).exp())
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn forward<E: Element>(gate_up: &[E], y: &mut [E], ffn: usize) {
    for (gate_up, y) in gate_up.chunks_exact(2 * ffn).zip(y.chunks_exact_mut(ffn)) {
        let (gate, up) = gate_up.split_at(ffn);
        for ((gate, up), y) in gate.iter().zip(up).zip(y) {
            let gate = gate.widen();
            // silu is rounded first, as transformers does.
            *y = E::narrow(E::narrow(gate * sigmoid(gate)).widen() * up.widen());
        }
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn backward<E: Element>(gate_up: &mut [E], dy: &[E], ffn: usize) {
    for (gate_up, dy) in gate_up.chunks_exact_mut(2 * ffn).zip(dy.chunks_exact(ffn)) {
        let (gates, ups) = gate_up.split_at_mut(ffn);
        // In fixed lanes: over three slices of unknown length the compiler does not vectorise this.
        let (gate_lanes, gates) = gates.as_chunks_mut::<LANES>();
        let (up_lanes, ups) = ups.as_chunks_mut::<LANES>();
        let (dy_lanes, dy) = dy.as_chunks::<LANES>();
        for ((gates, ups), dy) in gate_lanes.iter_mut().zip(up_lanes).zip(dy_lanes) {
            for lane in 0..LANES {
                (gates[lane], ups[lane]) = gradients(gates[lane], ups[lane], dy[lane]);
            }
        }
        for ((gate, up), dy) in gates.iter_mut().zip(ups).zip(dy) {
            (*gate, *up) = gradients(*gate, *up, *dy);
        }
    }
}

/// Gradients of gate and up.
#[inline(always)]
fn gradients<E: Element>(gate: E, up: E, dy: E) -> (E, E) {
    let (g, u, dy) = (gate.widen(), up.widen(), dy.widen());
    let (s, one) = (sigmoid(g), E::Wide::from_f64(1.0));
    (E::narrow(dy * u * s * (one + g * (one - s))), E::narrow(dy * g * s))
}
