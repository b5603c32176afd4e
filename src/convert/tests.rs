//! Whole files: against those that the golden scripts wrote in llama.cpp's conventions, and against their own
//! sources.

use super::*;
use crate::hub::NoProgress;
use crate::weights::WeightType;
use crate::weights::safetensors;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn options(kind: &str) -> ConvertOptions {
    ConvertOptions { kind: Kind::parse(kind).unwrap(), requantize: false, overwrite: false, threads: 2 }
}

/// Every golden checkpoint of a family that is written: the same tensors as in its golden GGUF file, and a
/// blueprint that computes the same.
#[test]
fn tensors_are_those_of_the_golden_files() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for entry in golden("families").read_dir().unwrap() {
        let folder = entry.unwrap().path();
        let (file, name) =
            (folder.join("model.gguf"), folder.file_name().unwrap().to_string_lossy().into_owned());
        let Ok(Some(root)) = json::read_object(&folder.join("config.json")) else { continue };
        let Ok(config) = hf::parse_object(&root) else { continue };
        if !file.is_file() || blueprint::write::architecture(&config).is_err() {
            continue;
        }
        let weights = safetensors::open(&folder).unwrap();
        let written = blueprint::write::pairs(&config).and_then(|(pairs, given)| {
            check_blueprint(&config, &pairs, &given)?;
            tensors::of_folder(&config, &weights, given, &options("f32"))
        });
        let targets = match written {
            Ok(targets) => targets,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        count += 1;
        let golden = Gguf::open(&file).unwrap().weights;
        let mut names: Vec<_> = targets.iter().map(|target| target.planned.name.as_str()).collect();
        names.sort_unstable();
        if names != golden.names().collect::<Vec<_>>() {
            wrong.push(format!("{name}: {names:?} for {:?}", golden.names().collect::<Vec<_>>()));
            continue;
        }
        for target in &targets {
            let mut bytes = Vec::new();
            target
                .write(&weights, 1, &mut |part| {
                    bytes.extend_from_slice(part);
                    Ok(())
                })
                .unwrap();
            let wanted = golden.get(&target.planned.name).unwrap();
            let floats: Vec<f32> = bytes.as_chunks().0.iter().map(|le| f32::from_le_bytes(*le)).collect();
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
            let same = floats.len() == wanted.elements() && floats.iter().zip(&wanted.to_f32()).all(close);
            if !same || wanted.shape != target.planned.shape {
                wrong.push(format!("{name}: {} {:?}", target.planned.name, target.planned.shape));
            }
        }
    }
    assert!(wrong.is_empty() && count >= 12, "{count} files; {}", wrong.join("\n"));
}

/// The tokenizers of the golden folders are written and read back the same, or refused by name.
#[test]
fn tokenizers_are_written_whole_or_refused() {
    for (folder, wanted) in [
        ("hf-bytelevel", Ok("gpt2")),
        ("hf-gemma", Ok("llama")),
        ("hf-llama", Ok("llama")),
        ("hf-metaspace", Err("no place in a GGUF file")),
    ] {
        match (tokenizer::to_gguf(&golden("text").join(folder), 0, &[]), wanted) {
            (Ok(written), Ok(model)) => {
                let header = write::gguf_header(&written.pairs);
                let metadata = Gguf::from_bytes(Bytes::from_vec(header), Path::new("x")).unwrap().metadata;
                assert_eq!(metadata.str("tokenizer.ggml.model").unwrap(), Some(model), "{folder}");
            }
            (Err(error), Err(words)) => assert!(error.message().contains(words), "{folder}: {error}"),
            (found, _) => panic!("{folder}: {:?}", found.map(|written| written.notes)),
        }
    }
}

#[test]
fn a_gguf_file_keeps_its_metadata_and_what_is_quantized() {
    let folder = tempfile::tempdir().unwrap();
    let source = golden("families/llama-gqa-tied/model.gguf");
    let (eight, again, whole) =
        (folder.path().join("8.gguf"), folder.path().join("4.gguf"), folder.path().join("32.gguf"));
    let report = convert(&source, &eight, &options("q8_0"), &NoProgress).unwrap();
    let (old, new) = (Gguf::open(&source).unwrap(), Gguf::open(&eight).unwrap());
    assert_eq!(report.types[0].0, "Q8_0");
    let pairs = |gguf: &Gguf| {
        let all = gguf.metadata.iter().filter(|(key, _)| *key != "general.file_type");
        all.map(|(key, value)| format!("{key} {value:?}")).collect::<Vec<_>>()
    };
    assert_eq!(pairs(&old), pairs(&new));
    assert_eq!(new.metadata.u32("general.file_type").unwrap(), Some(7));
    assert_eq!(old.weights.names().collect::<Vec<_>>(), new.weights.names().collect::<Vec<_>>());
    let q = |gguf: &Gguf| gguf.weights.get("blk.0.attn_q.weight").unwrap();
    let wanted = crate::weights::quantize::quantize(&q(&old), WeightType::Q8_0, 1).unwrap();
    assert!(q(&new).data[..] == wanted.data[..] && q(&new).dtype == WeightType::Q8_0);

    // Nothing is overwritten, and nothing rounded twice, unless that is asked for.
    let error = convert(&source, &eight, &options("q8_0"), &NoProgress).unwrap_err();
    assert!(error.message().contains("is there already"), "{error}");
    let report = convert(&eight, &again, &options("q4_0"), &NoProgress).unwrap();
    assert!(report.notes[0].contains("quantized already"), "{:?}", report.notes);
    assert_eq!(q(&Gguf::open(&again).unwrap()).dtype, WeightType::Q8_0);
    let twice = ConvertOptions { requantize: true, overwrite: true, ..options("q4_0") };
    let report = convert(&eight, &again, &twice, &NoProgress).unwrap();
    assert!(report.notes[0].contains("rounded twice"), "{:?}", report.notes);
    assert_eq!(q(&Gguf::open(&again).unwrap()).dtype, WeightType::Q4_0);
    // Floats of what is quantized are exact.
    convert(&eight, &whole, &options("f32"), &NoProgress).unwrap();
    assert_eq!(q(&Gguf::open(&whole).unwrap()).to_f32(), q(&new).to_f32());
    assert_eq!(folder.path().read_dir().unwrap().count(), 3);
}

#[test]
fn what_is_not_written_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    for (source, path, words) in [
        ("families/phi-parallel", &path, "\"phi\" model is not written"),
        ("families/llama-dynamic", &path, "Dynamic"),
        ("families/mistral-plain", &folder.path().join("x"), "ends in .gguf"),
        ("families/mistral-plain", &path, "tokenizer.json"),
    ] {
        let error = convert(&golden(source), path, &options("f16"), &NoProgress).unwrap_err();
        assert!(error.message().contains(words), "{source}: {error}");
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}
