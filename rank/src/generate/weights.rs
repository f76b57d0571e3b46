//! A model's weights whole on one rank's device, to compute with and not to train: nothing is kept beside them.

use std::path::PathBuf;

use proto::adapter_folder::AdapterFile;
use proto::config::{Adapter, Trained};
use proto::layout::{ParamLayout, TensorSplit, UnitLayout, model_layout_with};
use proto::model_config::{ModelConfig, ModelConfigFile};
use proto::plan::Matmul;
use tch::{Kind, Tensor};

use super::session::SessionError;
use crate::checkpoint::{CheckpointError, Pretrained};
use crate::device::{Buffer, Device};
use crate::model::{BlockWeights, EmbeddingWeights, HeadWeights, Projections, UnitViews};
use crate::process;

/// Where a model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolders {
    /// The model, or the one that the adapter was trained beside.
    pub model: PathBuf,
    /// The adapter, if there is one.
    pub adapter: Option<PathBuf>,
}

/// All weights of a model, and those of an adapter that computes beside them.
pub struct Weights {
    /// Sizes of the model.
    pub config: ModelConfig,
    /// Type of weights and activations.
    pub kind: Kind,
    /// By unit, in the order of the forward pass: the embedding, the blocks, the head.
    units: Vec<UnitViews>,
}

impl Weights {
    /// Reads the weights. `loaded` hears how many of how many units are there.
    ///
    /// # Errors
    /// Files that are not what they have to be.
    ///
    /// # Panics
    /// Where there is not enough memory.
    pub fn load(
        folders: &ModelFolders,
        kind: Kind,
        device: Device,
        mut loaded: impl FnMut(usize, usize),
    ) -> Result<Self, SessionError> {
        let config = ModelConfigFile::load(&folders.model.join("config.json"))?.config;
        let (trained, files) = Files::open(folders, &config)?;
        let layouts = model_layout_with(&config, TensorSplit::WHOLE, &trained);
        let projections =
            Projections { matmul: Matmul::Bf16, adapter_scale: trained.adapter().map_or(1.0, Adapter::scale) };
        let mut units = Vec::with_capacity(layouts.len());
        for layout in &layouts {
            loaded(units.len(), layouts.len());
            units.push(files.unit(layout, projections, kind, device)?);
            process::give_back_free_memory();
        }
        loaded(units.len(), layouts.len());
        Ok(Self { config, kind, units })
    }

    /// The embedding's.
    pub fn embedding(&self) -> &EmbeddingWeights {
        self.units[0].embedding()
    }

    /// The blocks', in the order of the forward pass.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockWeights> {
        self.units[1..self.units.len() - 1].iter().map(UnitViews::block)
    }

    /// The head's.
    pub fn head(&self) -> HeadWeights {
        self.units[self.units.len() - 1].head(&self.units[0])
    }
}

/// The files that weights are read from.
struct Files {
    model: Pretrained,
    adapter: Option<(Pretrained, Adapter)>,
}

impl Files {
    /// Opens them. Returns also what the adapter is, as something that would be trained.
    fn open(folders: &ModelFolders, config: &ModelConfig) -> Result<(Trained, Self), SessionError> {
        let model = Pretrained::model(&folders.model, config)?;
        let Some(folder) = &folders.adapter else {
            return Ok((Trained::Containing(vec![]), Self { model, adapter: None }));
        };
        let adapter = AdapterFile::load(folder)?.adapter;
        let files = Pretrained::adapter(folder, config, &adapter)?;
        Ok((Trained::Adapter(adapter.clone()), Self { model, adapter: Some((files, adapter)) }))
    }

    fn unit(
        &self,
        layout: &UnitLayout,
        projections: Projections,
        kind: Kind,
        device: Device,
    ) -> Result<UnitViews, CheckpointError> {
        let flat = Buffer::zeros(device.of_tensors(), kind, layout.numel());
        for param in &layout.params {
            let stored = flat.view(param.offset, &param.shape);
            self.fill(param, &if param.is_transposed { stored.tr() } else { stored })?;
        }
        // Views keep the memory alive.
        Ok(UnitViews::weights(layout, projections, |offset, shape| flat.view(offset, shape)))
    }

    /// `to`: the parameter, in the orientation of files.
    fn fill(&self, param: &ParamLayout, to: &Tensor) -> Result<(), CheckpointError> {
        match &self.adapter {
            Some((files, adapter)) if adapter.saves(&param.name) => files.fill(param, to),
            _ => self.model.fill(param, to),
        }
    }
}
