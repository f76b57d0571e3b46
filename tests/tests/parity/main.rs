//! ENG-1: what dslaunch trains equals what Hugging Face transformers trains, on every layout. The oracle is
//! `scripts/peers/hf_reference.py`.

mod adapters;
mod compare;
mod emulated;
mod frozen;
mod ground;
mod quantized;
mod several_gpus;
mod torch_files;
mod whole;
