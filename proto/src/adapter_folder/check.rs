//! Compares an adapter's tensors with its description and the model, by their headers.

use std::collections::BTreeMap;
use std::path::Path;

use super::{PREFIX, TENSORS, tensor_name};
use crate::config::{Adapter, SavedModule, Trained};
use crate::layout::{EMBEDDING, ParamLayout, TensorSplit, model_layout_with};
use crate::model_config::ModelConfig;
use crate::weights_folder::{WeightFilesError, check_tensor, file_headers};

/// Checks that every parameter that `adapter` trains of a model has its tensor in `folder`, of a type that is read and in the right
/// shape, and every tensor its parameter.
pub fn check_adapter(folder: &Path, config: &ModelConfig, adapter: &Adapter) -> Result<(), WeightFilesError> {
    let path = folder.join(TENSORS);
    let tensors: BTreeMap<String, _> = file_headers(&path)?.into_iter().collect();
    let trained = Trained::Adapter(adapter.clone());
    let layouts = model_layout_with(config, TensorSplit::WHOLE, &trained);
    let params = layouts.iter().flat_map(|layout| &layout.params).filter(|param| param.is_trained);
    let params: BTreeMap<String, &ParamLayout> = params.map(|param| (tensor_name(&param.name), param)).collect();
    let of_tensor = |name: &str, rule: &str| WeightFilesError::Tensor {
        path: path.clone(),
        name: name.to_owned(),
        rule: rule.to_owned(),
    };
    let tied = [SavedModule::EmbedTokens, SavedModule::LmHead];
    if config.tie_word_embeddings && tied.iter().any(|module| adapter.modules_to_save.contains(module)) {
        let rule = "is trained whole, but embed_tokens and lm_head are one matrix in this model (tie_word_embeddings)";
        return Err(of_tensor(&tensor_name(EMBEDDING), rule));
    }
    if let Some(name) = params.keys().find(|name| !tensors.contains_key(*name)) {
        return Err(of_tensor(name, "is not there, and adapter_config.json says that it is trained"));
    }
    for (name, tensor) in &tensors {
        let Some(param) = params.get(name) else {
            let rule = match name.strip_prefix(PREFIX) {
                Some(_) => "belongs to nothing that adapter_config.json says is trained of this model",
                None => "begins otherwise than the tensors of an adapter",
            };
            return Err(of_tensor(name, rule));
        };
        check_tensor(name, tensor, param, config)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::config::{Projection, Quantize};

    #[test]
    fn every_tensor_has_its_parameter_and_the_other_way_round() {
        let config = json!({
            "model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 5
        });
        let config = ModelConfig::parse("config.json".as_ref(), &config.to_string()).unwrap();
        let adapter = Adapter {
            rank: 2,
            alpha: 4.0,
            rslora: false,
            dora: false,
            targets: vec![Projection::Down],
            modules_to_save: vec![],
            quantize: Quantize::None,
        };
        let folder = tempfile::tempdir().unwrap();
        let check = |tensors: &[(&str, [usize; 2])]| {
            let (mut header, mut end) = (serde_json::Map::new(), 0);
            for (name, shape) in tensors {
                let begin = end;
                end += shape[0] * shape[1] * 4;
                header.insert((*name).into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
            }
            let header = serde_json::Value::Object(header).to_string();
            let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; end]].concat();
            fs::write(folder.path().join(TENSORS), bytes).unwrap();
            check_adapter(folder.path(), &config, &adapter).map_err(|error| match error {
                WeightFilesError::Tensor { name, rule, .. } => format!("{name}: {rule}"),
                other => other.to_string(),
            })
        };
        let a = ("base_model.model.model.layers.0.mlp.down_proj.lora_A.weight", [2, 6]);
        let b = ("base_model.model.model.layers.0.mlp.down_proj.lora_B.weight", [4, 2]);
        assert_eq!(check(&[a, b]), Ok(()));
        let missing = "is not there, and adapter_config.json says that it is trained";
        assert_eq!(check(&[a]), Err(format!("{}: {missing}", b.0)));
        let shape = "has shape [3, 6], config.json says [2, 6]";
        assert_eq!(check(&[(a.0, [3, 6]), b]), Err(format!("{}: {shape}", a.0)));
        let other = "base_model.model.lm_head.weight";
        let rule = "belongs to nothing that adapter_config.json says is trained of this model";
        assert_eq!(check(&[a, b, (other, [5, 4])]), Err(format!("{other}: {rule}")));
        let rule = "begins otherwise than the tensors of an adapter";
        assert_eq!(check(&[a, b, ("x", [1, 1])]), Err(format!("x: {rule}")));
    }
}
