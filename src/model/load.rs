//! From a name to a [`Model`]: resolve, read, check, put together. In: what the user typed after `--model`. Out: a model that can be
//! believed, or one line why not.

use super::architectures;
use super::assemble::{Contents, Prefix, Stored, assemble};
use super::gguf::{self, Gguf};
use super::metadata::{Container, GgufMetadata};
use super::opening::{OpenOptions, OpeningStage};
use super::resolver;
use super::source::Place;
use super::tensors::FileWeights;
use super::{Model, ModelError, ModelSpec, Vocabulary, safetensors, vocabulary};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Opens a model: a `.gguf` file (of a split model any part), a folder with `config.json`, `*.safetensors` and `tokenizer.json`, a hub id `org/name[:file]`, or
/// an alias. Everything is checked; weights are read later, from the open file.
pub fn open(name: &str, options: &OpenOptions) -> Result<Model, ModelError> {
    let resolved = resolver::resolve(name, options)?;
    match (&resolved.place, resolved.alias) {
        (Place::Gguf(path), None) => open_gguf(path, resolved.name, options),
        (Place::Gguf(path), Some(alias)) => {
            // A file of the cache that is not what the alias names was damaged after it was verified: it is fetched again, once.
            match open_gguf(path, resolved.name.clone(), options) {
                Ok(model) if model.digest == alias.sha256 => Ok(model),
                Err(error @ ModelError::Io(_)) => Err(error),
                _ => {
                    resolver::fetch(alias, options)?;
                    open_gguf(path, resolved.name, options)
                }
            }
        }
        (Place::Folder(path), _) => open_folder(path, resolved.name, options),
    }
}

fn open_gguf(path: &Path, name: String, options: &OpenOptions) -> Result<Model, ModelError> {
    let file = Gguf::open_set(path)?;
    let total = file.parts.iter().map(|part| part.len()).sum();
    let (built, digest) =
        with_digest(&name, total, options, |tell| digest_of(&file, tell), || build_gguf(&file));
    let (spec, vocabulary, weights) = built?;
    let digest = digest?;
    // Whichever part was named, the model is the set.
    let path = file.path().to_path_buf();
    let name = if file.parts.len() > 1 { resolver::file_name(&path) } else { name };
    Ok(Model { name, path, digest, spec, vocabulary, weights: Box::new(weights) })
}

/// Blueprint, vocabulary and weights, all of them checked.
fn build_gguf(file: &Gguf) -> Result<(ModelSpec, Vocabulary, FileWeights), ModelError> {
    let name_of = file.need_text("general.architecture")?;
    let architecture = architectures::of_gguf(name_of)
        .ok_or_else(|| file.error(architectures::unknown(name_of)))?;
    let vocabulary = vocabulary::from_gguf(file)?;
    let metadata = GgufMetadata::new(file, name_of, vocabulary.tokenizer.tokens.len());
    let spec = architectures::build(architecture, &metadata)?;
    metadata.guard()?;
    let guessing = file.value(&format!("{name_of}.nextn_predict_layers")).is_some();
    let stored = |info: &super::gguf::TensorInfo| {
        Stored::new(file.source_of(info).clone(), info.shape.clone(), info.encoding, info.offset)
    };
    let contents = Contents {
        container: Container::Gguf,
        tensors: file.tensors.iter().map(|(name, info)| (name.clone(), stored(info))).collect(),
        implied_by: "the metadata",
        prefix: Prefix::Plain,
        error: &|what| file.error(what),
        harmless: &|name| ROPE_FACTORS.contains(&name) || behind(name, spec.layers.len(), guessing),
    };
    let mut weights = assemble(architecture, &spec, contents)?;
    weights.file_type = file
        .integer("general.file_type", 0..=u64::from(u32::MAX))
        .ok()
        .flatten()
        .and_then(gguf::file_type);
    weights.check_finite()?;
    Ok((spec, vocabulary, weights))
}

/// Whether a tensor belongs to a block behind the layers, in a file that has such blocks (they guess further tokens).
fn behind(name: &str, layers: usize, guessing: bool) -> bool {
    let block = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    guessing && block.and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| n >= layers)
}

/// The file's digest; of a split model that of the parts' names and digests, as of a folder.
fn digest_of(file: &Gguf, tell: &dyn Fn(u64) -> bool) -> Result<String, ModelError> {
    match &file.parts[..] {
        [only] => only.digest(tell),
        parts => {
            let files =
                parts.iter().map(|part| (resolver::file_name(part.path()), part.clone())).collect();
            safetensors::digest(&files, tell)
        }
    }
}

fn open_folder(path: &Path, name: String, options: &OpenOptions) -> Result<Model, ModelError> {
    safetensors::looks_like_checkpoint(path)?;
    let safetensors::Checkpoint { spec, vocabulary, weights, files } = safetensors::open(path)?;
    let total = files.values().map(|f| f.len()).sum();
    let (finite, digest) = with_digest(
        &name,
        total,
        options,
        |tell| safetensors::digest(&files, tell),
        || weights.check_finite(),
    );
    finite?;
    Ok(Model {
        name,
        path: path.to_path_buf(),
        digest: digest?,
        spec,
        vocabulary,
        weights: Box::new(weights),
    })
}

/// `build` beside the digest of the `total` bytes, which one thread computes; it ends early where `build` fails.
fn with_digest<T: Send>(
    name: &str,
    total: u64,
    options: &OpenOptions,
    digest: impl FnOnce(&dyn Fn(u64) -> bool) -> Result<String, ModelError> + Send,
    build: impl FnOnce() -> Result<T, ModelError> + Send,
) -> (Result<T, ModelError>, Result<String, ModelError>) {
    let failed = AtomicBool::new(false);
    let tell = |done| {
        options.tell(OpeningStage::Check, name, done, Some(total));
        !failed.load(Ordering::Relaxed)
    };
    let build = || {
        let built = build();
        failed.store(built.is_err(), Ordering::Relaxed);
        built
    };
    rayon::join(build, || digest(&tell))
}

/// Divisors of rotary frequencies, which are read with the rope.
const ROPE_FACTORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Format;
    use crate::model::{Role, kinds};
    use crate::tiny::{Stored, Tiny, Values};

    fn opened(tiny: &Tiny) -> Model {
        let folder = tempfile::tempdir().expect("temporary folder");
        open(tiny.write(folder.path()).to_str().expect("path"), &OpenOptions::default())
            .expect("a good model")
    }

    fn values(model: &Model, role: Role) -> Vec<f32> {
        let mut bytes = Vec::new();
        let rows = model.weights.shape(role).0;
        model.weights.read(role, 0..rows, Format::F32, &mut bytes).expect("readable");
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
    }

    #[test]
    fn a_tiny_model_is_read_as_it_was_written() {
        for stored in Stored::ALL {
            let tiny = Tiny { tied: false, ..Tiny::default() }.stored(stored);
            let model = opened(&tiny);
            let (layers, first) = (model.spec.layers.len(), &model.spec.layers[0]);
            assert_eq!(
                (layers, model.spec.hidden, first.ffn.width()),
                (tiny.layers, tiny.hidden, tiny.ffn)
            );
            let attention = first.attention().expect("attention");
            assert_eq!(
                (attention.heads, attention.kv_heads, attention.head_dim),
                (tiny.heads, tiny.kv_heads, tiny.head_dim)
            );
            // The key names 2; `<|endoftext|>` is a control token that ends a text.
            assert_eq!(model.vocabulary.eos, [2, 0]);
            let written = tiny.tensors();
            let weights = written.iter().map(|m| m.values.len() as u64).sum();
            assert_eq!(
                kinds::parameters(&model.spec),
                kinds::Parameters { total: weights, active: weights }
            );
            for (role, shape) in kinds::roles(&model.spec) {
                let stem = kinds::kind(role).expect("in the table").gguf;
                let name = stem.replace("{}", &role.layer().unwrap_or(0).to_string());
                let matrix = written.iter().find(|m| m.name == name).expect("written");
                assert_eq!(model.weights.shape(role), shape);
                assert_eq!(
                    values(&model, role),
                    matrix.values,
                    "{name} as {stored:?}: the grid is exact in every format"
                );
            }
        }
    }

    #[test]
    fn a_tied_model_reads_its_embedding_as_output() {
        let model = opened(&Tiny::default());
        assert!(model.spec.tied_embeddings);
        assert_eq!(values(&model, Role::Output), values(&model, Role::TokenEmbedding));
    }

    #[test]
    fn some_rows_are_the_rows_of_the_whole_in_every_format() {
        let model = opened(&Tiny { values: Values::Fine, ..Tiny::default() });
        for format in Format::ALL.into_iter().filter(|f| f.is_written() && f.block() <= 32) {
            let (mut whole, mut some) = (Vec::new(), Vec::new());
            model.weights.read(Role::Gate(1), 0..96, format, &mut whole).expect("readable");
            model.weights.read(Role::Gate(1), 17..40, format, &mut some).expect("readable");
            let width = format.row_bytes(64);
            assert_eq!(some, whole[17 * width..40 * width], "{format}");
        }
        assert!(model.weights.read(Role::Gate(1), 90..97, Format::F32, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = Tiny::default().write(folder.path());
        let model =
            open(path.to_str().expect("path"), &OpenOptions::default()).expect("a good model");
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|f| f.set_len(1000))
            .expect("cut");
        let error = model
            .weights
            .read(Role::TokenEmbedding, 0..3, Format::F32, &mut Vec::new())
            .expect_err("cut off");
        assert!(matches!(error, ModelError::Io(_)), "{error}");
    }

    #[test]
    fn a_checkpoint_folder_holds_the_same_model_as_the_gguf_file() {
        for (shards, tied, stored) in
            [(1, true, Stored::Bf16), (3, false, Stored::F32), (2, true, Stored::F16)]
        {
            let tiny = Tiny { tied, ..Tiny::default() }.stored(stored);
            let folder = tempfile::tempdir().expect("temporary folder");
            tiny.write_checkpoint(&folder.path().join("tiny"), shards);
            let path = folder.path().join("tiny");
            let checkpoint =
                open(path.to_str().expect("path"), &OpenOptions::default()).expect("a good folder");
            let gguf = opened(&tiny);
            assert_eq!(checkpoint.name, "tiny");
            assert_eq!(checkpoint.spec, gguf.spec);
            for (role, shape) in kinds::roles(&gguf.spec) {
                assert_eq!(checkpoint.weights.shape(role), shape);
                assert_eq!(values(&checkpoint, role), values(&gguf, role), "{role:?}");
            }
            // Part of a head, and parts of two heads, of a permuted matrix.
            for rows in [3..9, 12..21] {
                let (mut some, mut all) = (Vec::new(), Vec::new());
                checkpoint
                    .weights
                    .read(Role::Query(0), rows.clone(), Format::F32, &mut some)
                    .expect("readable");
                gguf.weights.read(Role::Query(0), 0..64, Format::F32, &mut all).expect("readable");
                assert_eq!(some, all[rows.start * 256..rows.end * 256]);
            }
            let (a, b) = (&checkpoint.vocabulary, &gguf.vocabulary);
            assert_eq!(
                (a.bos, &a.eos, a.add_bos, &a.chat_template),
                (b.bos, &b.eos, b.add_bos, &b.chat_template)
            );
            assert_eq!((&a.bos_text, &a.eos_text), (&b.bos_text, &b.eos_text));
        }
    }

    /// A tiny model as `count` files, the first without tensors.
    fn split(folder: &std::path::Path, count: usize) -> Vec<crate::tiny::Gguf> {
        use crate::tiny::{Gguf, Value};
        let whole = Tiny::default().container();
        let total = whole.tensors.len();
        let chunk = total.div_ceil(count - 1);
        let parts: Vec<Gguf> = (0..count)
            .map(|number| {
                let tensors = whole
                    .tensors
                    .iter()
                    .skip((number.max(1) - 1) * chunk)
                    .take(if number == 0 { 0 } else { chunk });
                let mut part = Gguf { tensors: tensors.cloned().collect(), ..Gguf::default() };
                if number == 0 {
                    part.metadata = whole.metadata.clone();
                }
                let short = |n: usize| Value::Raw(2, (n as u16).to_le_bytes().to_vec());
                part.set("split.no", short(number)).set("split.count", short(count));
                part.set("split.tensors.count", Value::I32(total as i32));
                part
            })
            .collect();
        write_parts(folder, &parts);
        parts
    }

    fn part_path(folder: &std::path::Path, number: usize, count: usize) -> std::path::PathBuf {
        folder.join(format!("tiny-Q8-{:05}-of-{count:05}.gguf", number + 1))
    }

    fn write_parts(folder: &std::path::Path, parts: &[crate::tiny::Gguf]) {
        for (number, part) in parts.iter().enumerate() {
            std::fs::write(part_path(folder, number, parts.len()), part.bytes()).expect("write");
        }
    }

    #[test]
    fn a_split_model_is_the_whole_one_whichever_part_is_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let whole = opened(&Tiny::default());
        split(folder.path(), 4);
        let mut digests = std::collections::HashSet::new();
        for number in 0..4 {
            let path = part_path(folder.path(), number, 4);
            let model =
                open(path.to_str().expect("path"), &OpenOptions::default()).expect("a good set");
            assert_eq!((&*model.name, &model.spec), ("tiny-Q8-00001-of-00004.gguf", &whole.spec));
            assert_eq!(model.path, part_path(folder.path(), 0, 4));
            for (role, _) in kinds::roles(&whole.spec) {
                assert_eq!(values(&model, role), values(&whole, role), "{role:?}");
            }
            digests.insert(model.digest.clone());
        }
        assert_eq!(digests.len(), 1, "one digest for all");
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a list of cases")]
    fn a_split_set_that_does_not_hold_together_is_refused_in_one_line_that_says_why() {
        use crate::tiny::{Gguf, Value};
        type Damage = fn(&std::path::Path, &mut Vec<Gguf>);
        fn all(parts: &mut [Gguf], key: &str, value: Value) {
            parts.iter_mut().for_each(|part| {
                part.set(key, value.clone());
            });
        }
        let huge: [(Damage, &str); 10] = [
            (
                |_, p| all(p, "split.count", Value::U64(u64::MAX)),
                "'split.count' is 18446744073709551615; it must be an integer",
            ),
            (
                |_, p| all(p, "split.count", Value::U32(65_535)),
                "'split.count' is 65535; it must be an integer from 1 to 512",
            ),
            (
                |_, p| all(p, "split.count", Value::I32(-3)),
                "'split.count' is -3; it must be an integer",
            ),
            (
                |_, p| all(p, "split.count", Value::U32(0)),
                "'split.count' is 0; it must be an integer",
            ),
            (
                |_, p| all(p, "split.count", Value::U32(400)),
                "it must be called NAME-00001-of-00400.gguf",
            ),
            (
                |_, p| all(p, "split.tensors.count", Value::U64(u64::MAX)),
                "'split.tensors.count' is 18446744073709551615",
            ),
            (|_, p| all(p, "split.tensors.count", Value::I32(-1)), "'split.tensors.count' is -1"),
            (
                |_, p| {
                    p[2].tensor_count = Some(1 << 40);
                },
                "00003-of-00003.gguf",
            ),
            // A tensor less, everywhere: the set holds together, the model does not.
            (
                |_, p| {
                    let lost = p[2].tensors.pop().expect("one").name;
                    assert_eq!(lost, "output_norm.weight");
                    let total = p.iter().map(|part| part.tensors.len()).sum::<usize>();
                    all(p, "split.tensors.count", Value::U32(total as u32));
                },
                "output_norm.weight",
            ),
            // A part of another model, as long as this one.
            (
                |_, p| {
                    p[1].set("general.architecture", Value::Str("qwen2".into()));
                },
                "'general.architecture' is not the one of the first part",
            ),
        ];
        let cases: [(Damage, &str); 12] = [
            (
                |f, _| std::fs::remove_file(part_path(f, 1, 3)).expect("remove"),
                "tiny-Q8-00002-of-00003.gguf is missing",
            ),
            (
                |f, _| std::fs::write(part_path(f, 2, 3), b"").expect("write"),
                "00003-of-00003.gguf: the file is empty",
            ),
            (
                |f, _| {
                    std::fs::copy(part_path(f, 1, 3), part_path(f, 2, 3)).map(|_| ()).expect("copy")
                },
                "'split.no' is 1, but the name says 2",
            ),
            (
                |_, p| {
                    p[1].set("split.count", Value::U32(4));
                },
                "'split.count' is not 3",
            ),
            (
                |_, p| {
                    p[2].set("split.no", Value::U32(3));
                },
                "'split.no' is 3; it must be an integer from 0 to 2",
            ),
            (
                |_, p| {
                    p[2].unset("split.no");
                },
                "'split.no' is missing",
            ),
            (
                |_, p| {
                    p[1].unset("split.count");
                },
                "'split.count' is not 3",
            ),
            (
                |_, p| {
                    p[2].set("split.tensors.count", Value::I32(1));
                },
                "'split.tensors.count' is not the one of",
            ),
            (
                |_, p| {
                    p.iter_mut().for_each(|p| {
                        p.set("split.tensors.count", Value::I32(7));
                    })
                },
                "is 7, but the 3 parts hold",
            ),
            (
                |_, p| {
                    p.iter_mut().for_each(|p| {
                        p.unset("split.tensors.count");
                    })
                },
                "'split.tensors.count' is missing",
            ),
            (|_, p| p[2].tensors[0] = p[1].tensors[0].clone(), "is also in an earlier part"),
            (
                |_, p| {
                    p[0].set("split.count", Value::Str("3".into()));
                },
                "'split.count' is a text; it must be an integer",
            ),
        ];
        for (damage, expected) in cases.into_iter().chain(huge) {
            let folder = tempfile::tempdir().expect("temporary folder");
            let mut parts = split(folder.path(), 3);
            let before: Vec<Vec<u8>> = parts.iter().map(Gguf::bytes).collect();
            damage(folder.path(), &mut parts);
            for (number, part) in
                parts.iter().enumerate().filter(|(i, part)| part.bytes() != before[*i])
            {
                std::fs::write(part_path(folder.path(), number, 3), part.bytes()).expect("write");
            }
            let path = part_path(folder.path(), 0, 3);
            let error = open(path.to_str().expect("path"), &OpenOptions::default()).err();
            let error = error.unwrap_or_else(|| panic!("accepted: {expected}")).to_string();
            assert!(
                error.contains(expected) && !error.contains('\n'),
                "{error} does not say {expected}"
            );
            assert!(error.contains("tiny-Q8-0000"), "{error} names no part");
        }
        // Renamed: the others cannot be found.
        let folder = tempfile::tempdir().expect("temporary folder");
        split(folder.path(), 3);
        let path = folder.path().join("model.gguf");
        std::fs::rename(part_path(folder.path(), 1, 3), &path).expect("rename");
        let error = open(path.to_str().expect("path"), &OpenOptions::default())
            .err()
            .expect("renamed")
            .to_string();
        assert!(
            error.contains("part 2 of 3") && error.contains("NAME-00002-of-00003.gguf"),
            "{error}"
        );
    }

    #[test]
    fn a_split_set_with_any_byte_changed_is_loaded_or_refused_in_one_line() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let parts: Vec<Vec<u8>> =
            split(folder.path(), 3).iter().map(crate::tiny::Gguf::bytes).collect();
        let named = part_path(folder.path(), 0, 3);
        let (mut state, mut refused) = (7u64, 0);
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..600 {
            let number = random(3);
            // Most changes where the keys of the set and the list of tensors are.
            let mut bytes = parts[number].clone();
            let len = bytes.len();
            match random(4) {
                0 => bytes.truncate(random(len)),
                1 => bytes[random(len.min(900))] ^= 1 << random(8),
                2 => {
                    let at = random(len.min(900) - 8);
                    bytes[at..at + 8].fill(0xff);
                }
                _ => bytes[len - 1 - random(len.min(900))] ^= 1 << random(8),
            }
            let path = part_path(folder.path(), number, 3);
            std::fs::write(&path, &bytes).expect("write");
            if let Err(error) = open(named.to_str().expect("path"), &OpenOptions::default()) {
                let line = error.to_string();
                assert!(
                    line.contains("tiny-Q8-0000") && !line.contains('\n') && line.len() < 600,
                    "{line:?}"
                );
                assert!(matches!(error, crate::model::ModelError::Invalid(_)), "{line:?}");
                refused += 1;
            }
            std::fs::write(&path, &parts[number]).expect("write");
        }
        assert!(
            open(named.to_str().expect("path"), &OpenOptions::default()).is_ok() && refused > 250,
            "{refused} refused"
        );
    }

    #[test]
    fn the_default_model_is_fetched_and_checked() {
        let model = open("smollm2-135m", &OpenOptions::default()).expect("the default model");
        assert_eq!(
            (model.spec.layers.len(), model.spec.hidden, model.spec.vocab),
            (30, 576, 49152)
        );
        assert!(model.spec.tied_embeddings);
        assert_eq!(model.weights.encoding(Role::Query(0)).ggml_name(), "Q4_1");
        assert_eq!(model.weights.format(Role::TokenEmbedding), Some(Format::Q8_0));
        assert_eq!(
            model.vocabulary.tokenizer.cuts,
            crate::model::PreTokenizer::named("smollm").expect("known").cuts
        );
    }

    #[test]
    fn a_checkpoints_only_safetensors_file_may_have_any_name() {
        let folder = tempfile::tempdir().expect("temporary folder");
        Tiny::default().stored(Stored::Bf16).write_checkpoint(folder.path(), 1);
        let path = folder.path().to_str().expect("path");
        let file = |name: &str| folder.path().join(name);
        let error = || open(path, &OpenOptions::default()).err().expect("no model").to_string();
        std::fs::rename(file("model.safetensors"), file("weights.safetensors")).expect("renamed");
        let digest = open(path, &OpenOptions::default()).expect("the only one").digest;
        std::fs::copy(file("weights.safetensors"), file("adapter.safetensors")).expect("copied");
        assert!(
            error().contains(
                "adapter.safetensors and weights.safetensors, and neither model.safetensors nor"
            ),
            "{}",
            error()
        );
        std::fs::rename(file("adapter.safetensors"), file("model.safetensors")).expect("renamed");
        open(path, &OpenOptions::default()).expect("the usual one");
        assert!(!digest.is_empty());
        std::fs::remove_file(file("model.safetensors")).expect("removed");
        std::fs::remove_file(file("weights.safetensors")).expect("removed");
        assert!(error().contains("no file *.safetensors"), "{}", error());
    }

    #[test]
    fn a_model_of_width_one_is_read_as_any_other() {
        for stored in [Stored::F32, Stored::Bf16] {
            for tiny in [
                Tiny { ffn: 1, ..Tiny::default() }.stored(stored),
                Tiny { hidden: 1, heads: 1, kv_heads: 1, head_dim: 2, ffn: 1, ..Tiny::default() }
                    .stored(stored),
            ] {
                let folder = tempfile::tempdir().expect("temporary folder");
                let model = open(
                    tiny.write(folder.path()).to_str().expect("path"),
                    &OpenOptions::default(),
                )
                .expect("a good model");
                assert_eq!(model.spec.hidden, tiny.hidden);
            }
        }
    }
}
