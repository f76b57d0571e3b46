//! Chooses what a model computes on, and says whether there is room for it: before anything is loaded.

use proto::config::{Device, Dtype};
use proto::env::variable;
use proto::layout::{TensorSplit, model_layout_with};
use proto::model_config::ModelConfig;

use super::args::{DeviceArg, DtypeArg, GenerateArgs};
use super::error::GenerateError;
use super::source::Source;
use crate::gpus::{Gpus, Unfit, Visible};
use crate::machine::{cores, memory};
use crate::output::units;

/// The bytes of libtorch and its buffers on a CPU: measured for training, which needs more.
const LIBRARY_BYTES: u64 = 256 << 20;

/// The bytes of a GPU for CUDA's context and cuBLAS, and for kernels: 700 MiB were measured with training's.
const CUDA_BYTES: u64 = 768 << 20;

/// Tokens of a prompt that are read at a time: rank's `READ_AT_A_TIME`.
const READ_AT_A_TIME: u64 = 512;

/// What a model computes on.
#[derive(Debug)]
pub struct Ground {
    device: Device,
    dtype: Dtype,
    /// Its threads on the host.
    pub threads: usize,
    /// Free bytes of the device, where they are known.
    available: Option<u64>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

impl Ground {
    /// Looks at the machine.
    pub fn choose(args: &GenerateArgs) -> Result<Self, GenerateError> {
        let gpus = if args.device == DeviceArg::Cpu { Gpus::NoDriver } else { Gpus::look() };
        let named = variable("CUDA_VISIBLE_DEVICES").map(|value| value.to_string_lossy().into_owned());
        let visible = Visible::of(&gpus, named.as_deref());
        let free =
            visible.as_ref().ok().and_then(|visible| visible.of_ranks(&gpus, 1).first().map(|gpu| gpu.memory_free));
        let (device, note) = device(args.device, visible.map(|visible| visible.count()))?;
        Ok(Self {
            device,
            dtype: dtype(args.dtype, device),
            threads: cores::available(),
            available: if device == Device::Cuda { free } else { memory::available() },
            notes: note.into_iter().collect(),
        })
    }

    /// Whether it is a GPU.
    pub fn is_gpu(&self) -> bool {
        self.device == Device::Cuda
    }

    /// Whether weights and activations are bf16.
    pub fn is_bf16(&self) -> bool {
        self.dtype == Dtype::Bf16
    }

    /// Whether there is room for a model and a sequence of so many tokens.
    pub fn check_room(&self, source: &Source, tokens: usize) -> Result<(), GenerateError> {
        let needed = Needed::of(source, self.dtype, self.device, tokens as u64);
        let Some(available) = self.available.filter(|available| *available < needed.total()) else { return Ok(()) };
        let hint = match self.dtype {
            Dtype::Fp32 => "--dtype bf16 halves that",
            Dtype::Bf16 => "a smaller model, or fewer --max-new-tokens, would",
        };
        let Needed { weights, cache, rest } = needed;
        Err(GenerateError::Memory {
            what: format!(
                "its weights need {}, {tokens} tokens {}, libraries and work {}: together",
                units::bytes(weights),
                units::bytes(cache),
                units::bytes(rest)
            ),
            place: if self.is_gpu() { "the GPU".into() } else { "this machine".into() },
            needed: units::bytes(needed.total()),
            available: units::bytes(available),
            hint,
        })
    }
}

/// What to compute on, and a note where a GPU that is there cannot be taken. `gpus`: how many there are. Pure.
fn device(asked: DeviceArg, gpus: Result<usize, Unfit>) -> Result<(Device, Option<String>), GenerateError> {
    match (asked, gpus) {
        (DeviceArg::Cuda, Err(unfit)) => Err(GenerateError::UnfitGpu(unfit)),
        (DeviceArg::Cuda, Ok(0)) => Err(GenerateError::NoGpu),
        (DeviceArg::Cuda | DeviceArg::Auto, Ok(1..)) => Ok((Device::Cuda, None)),
        (DeviceArg::Auto, Err(unfit)) => Ok((Device::Cpu, Some(format!("computes on the CPU: {unfit}")))),
        (DeviceArg::Auto | DeviceArg::Cpu, _) => Ok((Device::Cpu, None)),
    }
}

fn dtype(asked: DtypeArg, device: Device) -> Dtype {
    match (asked, device) {
        (DtypeArg::Bf16, _) | (DtypeArg::Auto, Device::Cuda) => Dtype::Bf16,
        (DtypeArg::Fp32, _) | (DtypeArg::Auto, Device::Cpu) => Dtype::Fp32,
    }
}

/// Bytes that a model needs to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needed {
    weights: u64,
    /// Keys and values of all tokens.
    cache: u64,
    /// What is computed while a part of the prompt is read, and libraries.
    rest: u64,
}

impl Needed {
    /// The arithmetic of `rank/src/generate/`. Pure.
    fn of(source: &Source, dtype: Dtype, device: Device, tokens: u64) -> Self {
        let config = &source.config;
        let element = match dtype {
            Dtype::Bf16 => 2,
            Dtype::Fp32 => 4,
        };
        let layouts = model_layout_with(config, TensorSplit::WHOLE, &source.trained);
        let numel: usize = layouts.iter().map(|layout| layout.numel()).sum();
        let per_token = 2 * (config.num_key_value_heads * config.head_dim * config.num_hidden_layers) as u64;
        let libraries = if device == Device::Cuda { CUDA_BYTES } else { LIBRARY_BYTES };
        Self {
            weights: numel as u64 * element,
            cache: per_token * tokens * element,
            rest: libraries + work(config, device, tokens, element),
        }
    }

    fn total(self) -> u64 {
        self.weights + self.cache + self.rest
    }
}

/// The largest of what a part of a prompt makes on its way through a block, twice: what comes in and what goes out; and the logits.
fn work(config: &ModelConfig, device: Device, tokens: u64, element: u64) -> u64 {
    let read = tokens.min(READ_AT_A_TIME);
    let feed_forward = read * 2 * config.intermediate_size as u64 * element;
    let heads = config.num_attention_heads as u64;
    // A GPU's attention with a cache has all scores in fp32; a CPU's has a mask of them for the query heads of one key/value head.
    let scores = match device {
        Device::Cuda => read * tokens * heads * 4,
        Device::Cpu => read * tokens * (heads / config.num_key_value_heads as u64) * element,
    };
    2 * feed_forward.max(scores) + 2 * 4 * config.vocab_size as u64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use proto::config::Trained;

    use super::*;

    #[test]
    fn a_gpu_is_taken_where_there_is_one_that_fits() {
        let old = || Unfit::TooOld { index: 0, name: "V100".into(), compute: (7, 0) };
        let found = |asked, gpus| device(asked, gpus).map_err(|error| error.to_string());
        assert_eq!(found(DeviceArg::Auto, Ok(2)), Ok((Device::Cuda, None)));
        assert_eq!(found(DeviceArg::Auto, Ok(0)), Ok((Device::Cpu, None)));
        assert_eq!(found(DeviceArg::Cpu, Ok(2)), Ok((Device::Cpu, None)));
        let (cpu, note) = found(DeviceArg::Auto, Err(old())).unwrap();
        assert!(cpu == Device::Cpu && note.unwrap().contains("V100"));
        assert!(found(DeviceArg::Cuda, Ok(0)).unwrap_err().contains("no NVIDIA GPU"));
        assert!(found(DeviceArg::Cuda, Err(old())).unwrap_err().contains("V100"));
        assert_eq!(dtype(DtypeArg::Auto, Device::Cuda), Dtype::Bf16);
        assert_eq!(dtype(DtypeArg::Auto, Device::Cpu), Dtype::Fp32);
        assert_eq!(dtype(DtypeArg::Fp32, Device::Cuda), Dtype::Fp32);
    }

    fn source() -> Source {
        let config = json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30,
            "num_attention_heads": 32, "vocab_size": 102_400
        });
        let config = ModelConfig::parse("config.json".as_ref(), &config.to_string()).unwrap();
        let (model, files) = ("m".into(), "m".into());
        Source { model, adapter: None, files, config, trained: Trained::Containing(vec![]), notes: vec![] }
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused_with_figures() {
        let ground = |available, dtype| Ground { device: Device::Cuda, dtype, threads: 1, available, notes: vec![] };
        let Needed { weights, cache, .. } = Needed::of(&source(), Dtype::Bf16, Device::Cuda, 4096);
        assert_eq!((weights, cache), (2 * 6_910_365_696, 2 * 2 * 4096 * 30 * 4096));
        assert!(ground(Some(24 << 30), Dtype::Bf16).check_room(&source(), 4096).is_ok());
        assert!(ground(None, Dtype::Fp32).check_room(&source(), 4096).is_ok(), "nobody knows");
        let refused = ground(Some(16 << 30), Dtype::Fp32).check_room(&source(), 4096).unwrap_err().to_string();
        let expected = "its weights need 25.74 GiB, 4096 tokens 3.75 GiB";
        assert!(
            refused.contains(expected) && refused.contains("the GPU has 16.00 GiB left; --dtype bf16"),
            "{refused}"
        );
    }
}
