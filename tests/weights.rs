//! Reading weights: what formats mean (against llama.cpp's own reference), what readers give, what they
//! refuse.

#[path = "weights/allocations.rs"]
mod allocations;
#[path = "weights/hostile.rs"]
mod hostile;
#[path = "weights/real.rs"]
mod real;
#[path = "weights/writer.rs"]
mod writer;

use std::path::Path;

use tallow::error::ErrorKind;
use tallow::weights::blocks::dequantize_row;
use tallow::weights::quantize::quantize;
use tallow::weights::{Bytes, Gguf, WeightTensor, WeightType, Weights, safetensors};

/// The values that `gguf.quants.dequantize` gives for random blocks and for quantized weights, bit for bit.
#[test]
fn dequantization_equals_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quant");
    let mut failed = Vec::new();
    let others = |ty: &WeightType| ty.ggml_id().is_some() && *ty != WeightType::F32;
    for ty in WeightType::ALL.into_iter().filter(others) {
        let name = format!("{}.safetensors", ty.name().to_lowercase());
        let bytes = std::fs::read(folder.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let golden = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for kind in ["random", "real"] {
            let blocks = golden.tensor(&format!("{kind}_blocks")).unwrap();
            let values = golden.tensor(&format!("{kind}_values")).unwrap();
            let wanted: Vec<_> =
                values.data().as_chunks().0.iter().map(|le| f32::from_le_bytes(*le)).collect();
            let mut found = vec![f32::NAN; wanted.len()];
            dequantize_row(ty, blocks.data(), &mut found);
            let differ = |(_, (a, b)): &(usize, (&f32, &f32))| a.to_bits() != b.to_bits();
            let differing: Vec<_> = wanted.iter().zip(&found).enumerate().filter(differ).collect();
            if let Some((index, (wanted, found))) = differing.first() {
                let count = differing.len();
                failed.push(format!("{ty} {kind}: {count} differ, first {index}: {found} for {wanted}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn gguf_gives_what_is_there() {
    let file = writer::sound().bytes();
    for version in [2, 3] {
        let mut file = file.clone();
        file[4] = version;
        let Gguf { metadata, weights } = Gguf::from_bytes(Bytes::from_vec(file), Path::new("x")).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "odd"]);
        let a = weights.get("a").unwrap();
        assert_eq!((a.dtype, a.shape.as_slice(), a.data.len()), (WeightType::F32, &[3, 4][..], 48));
        assert_eq!(a.data[..4], [0, 7, 14, 21]);
        let b = weights.get("b").unwrap();
        assert_eq!((b.dtype, b.shape.as_slice(), b.data.len()), (WeightType::Q4_0, &[2, 64][..], 72));
        assert_eq!(b.data[0], 64u8.wrapping_mul(7));
        assert_eq!(weights.total_bytes(), 48 + 72);
        assert_eq!(weights.shape("odd"), Some(&[256][..]));
        for (name, kind, words) in [
            ("odd", ErrorKind::UnsupportedModel, "\"odd\" is stored as Q8_1 (GGUF type 9)"),
            ("absent", ErrorKind::ModelFile, "no tensor \"absent\""),
        ] {
            let error = weights.get(name).unwrap_err();
            assert!(error.kind() == kind && error.message().contains(words), "{error:?}");
        }
        let ints: Vec<_> = (0..6).map(|ty| metadata.u64(&format!("t{ty}")).ok().flatten()).collect();
        assert_eq!(ints, [Some(200), None, Some(60_000), None, Some(4_000_000_000), None]);
        assert_eq!(metadata.u64("t10").unwrap(), Some(u64::MAX));
    }
}

#[test]
fn metadata_getters_are_typed() {
    let bytes = writer::every_type().pair("bad", writer::array_value(8, 1, &writer::text(&[0xff]))).bytes();
    let meta = Gguf::from_bytes(Bytes::from_vec(bytes), Path::new("x")).unwrap().metadata;
    assert_eq!(meta.len(), 27);
    assert_eq!(meta.str("t8").unwrap(), Some("hé"));
    assert_eq!((meta.f32("t6").unwrap(), meta.f32("t12").unwrap()), (Some(1.5), Some(2.5)));
    assert_eq!((meta.f32("t5").unwrap(), meta.bool("t7").unwrap()), (Some(-2.0), Some(true)));
    assert_eq!(meta.strs("a8").unwrap().unwrap().iter().collect::<Vec<_>>(), ["hé", "hé"]);
    assert_eq!(meta.strs("a8").unwrap().unwrap().get(2), None);
    assert_eq!(meta.f32s("a6").unwrap().unwrap(), [1.5, 1.5].as_slice());
    assert_eq!(meta.f32s("a12").unwrap().unwrap(), [2.5, 2.5].as_slice());
    for (key, value) in [("a0", 200), ("a1", -2), ("a2", 60_000), ("a3", -2), ("a5", -2)] {
        assert_eq!(meta.i32s(key).unwrap().unwrap(), [value, value].as_slice(), "{key}");
    }
    assert_eq!(meta.u64s("a4").unwrap(), Some(vec![4_000_000_000; 2]));
    assert_eq!(meta.bools("a7").unwrap(), Some(&[true, true][..]));
    assert!(meta.get("t9").is_some() && meta.get("a9").is_some());
    assert_eq!(meta.str("absent").unwrap(), None);
    assert_eq!(meta.strs("absent").unwrap(), None);
    let errors = [
        ("t0", meta.str("t0").err()),
        ("t8", meta.u64("t8").err()),
        ("t5", meta.u64("t5").err()),
        ("t10", meta.u32("t10").err()),
        ("t7", meta.f32("t7").err()),
        ("a5", meta.strs("a5").map(|_| ()).err()),
        ("a4", meta.i32s("a4").err()),
        ("a5", meta.u64s("a5").err()),
        ("bad", meta.strs("bad").map(|_| ()).err()),
    ];
    for (key, error) in errors {
        let error = error.unwrap_or_else(|| panic!("{key} was taken"));
        assert!(error.kind() == ErrorKind::ModelFile && error.message().contains(key), "{error:?}");
    }
}

/// Writes a model in three parts and returns its folder.
fn split_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for part in 0..3u16 {
        let file = writer::GgufFile::new()
            .pair("split.no", writer::u16_value(part))
            .pair("split.count", writer::u16_value(3))
            .pair("split.tensors.count", writer::value(5, &3i32.to_le_bytes()))
            .pair("part", writer::u32_value(part.into()))
            .tensor(writer::tensor(&format!("t{part}"), &[2], 0, 0))
            .data(8);
        std::fs::write(dir.path().join(part_name(part)), file.bytes()).unwrap();
    }
    dir
}

fn part_name(part: u16) -> String {
    format!("m-{:05}-of-00003.gguf", part + 1)
}

#[test]
fn a_split_model_opens_by_its_first_part() {
    let dir = split_model();
    let gguf = Gguf::open(&dir.path().join(part_name(0))).unwrap();
    assert_eq!(gguf.weights.names().collect::<Vec<_>>(), ["t0", "t1", "t2"]);
    assert_eq!(gguf.weights.files().count(), 3);
    assert_eq!(gguf.weights.get("t2").unwrap().data.len(), 8);
    assert_eq!(gguf.metadata.u64("part").unwrap(), Some(0), "the metadata of the first part");
}

#[test]
fn parts_may_end_in_capitals() {
    let dir = split_model();
    for part in 0..3 {
        let name = dir.path().join(part_name(part));
        std::fs::rename(&name, name.with_extension("GGUF")).unwrap();
    }
    let first = dir.path().join(part_name(0)).with_extension("GGUF");
    assert_eq!(Gguf::open(&first).unwrap().weights.names().collect::<Vec<_>>(), ["t0", "t1", "t2"]);
}

#[test]
fn a_split_model_that_is_not_whole_says_why() {
    type Break = fn(&Path);
    let rows: [(&str, u16, Break, &str); 6] = [
        ("the second part is opened", 1, |_| (), "open the first part, m-00001-of-00003.gguf"),
        (
            "a part is missing",
            0,
            |dir| std::fs::remove_file(dir.join(part_name(2))).unwrap(),
            "part 3 of 3 is missing",
        ),
        (
            "a part stands for another",
            0,
            |dir| _ = std::fs::copy(dir.join(part_name(1)), dir.join(part_name(2))).unwrap(),
            "split.no is 1 and should be 2",
        ),
        (
            "a part is damaged",
            0,
            |dir| std::fs::write(dir.join(part_name(1)), b"GGUF").unwrap(),
            "m-00002-of-00003.gguf: the GGUF header",
        ),
        (
            "a tensor is in two parts",
            0,
            |dir| {
                let path = dir.join(part_name(1));
                let mut bytes = std::fs::read(&path).unwrap();
                let at = bytes.windows(2).position(|pair| pair == b"t1").unwrap();
                bytes[at + 1] = b'0';
                std::fs::write(path, bytes).unwrap();
            },
            "\"t0\" is there twice",
        ),
        (
            "fewer tensors than announced",
            0,
            |dir| {
                let bytes = writer::GgufFile::new()
                    .pair("split.no", writer::u16_value(2))
                    .pair("split.count", writer::u16_value(3));
                std::fs::write(dir.join(part_name(2)), bytes.bytes()).unwrap();
            },
            "hold 2 tensors together and 3 are announced",
        ),
    ];
    let mut failed = Vec::new();
    for (name, opened, spoil, words) in rows {
        let dir = split_model();
        spoil(dir.path());
        match Gguf::open(&dir.path().join(part_name(opened))) {
            Err(error) if error.kind() == ErrorKind::ModelFile && error.message().contains(words) => {}
            other => failed.push(format!("{name}: expected {words:?}, found {:?}", other.map(|_| "a model"))),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn safetensors_give_what_is_there() {
    let header = r#"{"w":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},
        "i":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#;
    let data = [1.0f32, -2.0, 0.5, 3.0].map(|value| half::bf16::from_f32(value).to_le_bytes()).concat();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("any name.safetensors");
    std::fs::write(&path, writer::safetensors(header, &[data, vec![0; 8]].concat())).unwrap();
    for source in [path.as_path(), dir.path()] {
        let weights: Weights = safetensors::open(source).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["i", "w"]);
        assert_eq!(weights.source(), source);
        let w = weights.get("w").unwrap();
        assert_eq!((w.dtype, w.shape.as_slice()), (WeightType::BF16, &[2, 2][..]));
        assert_eq!(w.to_f32(), [1.0, -2.0, 0.5, 3.0]);
        let error = weights.get("i").unwrap_err();
        assert!(error.kind() == ErrorKind::UnsupportedModel && error.message().contains("I64"), "{error:?}");
    }
    std::fs::write(dir.path().join("second.safetensors"), b"").unwrap();
    let error = safetensors::open(dir.path()).unwrap_err();
    assert!(error.message().contains("several safetensors files"), "{error}");
    let error = safetensors::open(tempfile::tempdir().unwrap().path()).unwrap_err();
    assert!(error.message().contains("no safetensors file"), "{error}");
}

/// A safetensors file of these tensors: name, type, shape, bytes.
fn file_of(tensors: &[(&str, &str, &[usize], usize)]) -> Weights {
    let (mut entries, mut at) = (Vec::new(), 0);
    for (name, dtype, shape, bytes) in tensors {
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{}]}}"#,
            at + bytes
        ));
        at += bytes;
    }
    let bytes = writer::safetensors(&format!("{{{}}}", entries.join(",")), &vec![0; at]);
    safetensors::from_bytes(Bytes::from_vec(bytes), Path::new("file.x")).unwrap()
}

#[test]
fn f64_becomes_f32() {
    let values = [1.0, -0.1, 1e-60, f64::from(f32::MAX), f64::NAN, f64::NEG_INFINITY];
    let bytes = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let header = r#"{"w":{"dtype":"F64","shape":[2,3],"data_offsets":[0,48]}}"#;
    let open = |values: &[f64]| {
        let file = writer::safetensors(header, &bytes(values));
        safetensors::from_bytes(Bytes::from_vec(file), Path::new("file.x")).unwrap()
    };
    let mut file = writer::GgufFile::new().tensor(writer::tensor("w", &[3, 2], 28, 0));
    file.data = bytes(&values);
    let gguf = Gguf::from_bytes(Bytes::from_vec(file.bytes()), Path::new("file.x")).unwrap().weights;
    for weights in [open(&values), gguf] {
        let (w, largest) = allocations::largest(|| weights.get("w").unwrap());
        // The counted handle of the bytes is the largest.
        assert!(largest <= 96, "{largest} bytes at once");
        assert_eq!((w.dtype, w.shape.as_slice(), w.data.len()), (WeightType::F32, &[2, 3][..], 24));
        let found: Vec<_> = w.to_f32().iter().map(|value| value.to_bits()).collect();
        assert_eq!(found, values.map(|value| (value as f32).to_bits()));
        assert_eq!(weights.total_bytes(), 48);
    }
    let error = open(&[1.0, 1e39, 0.0, 0.0, 0.0, 0.0]).get("w").unwrap_err();
    assert!(
        error.kind() == ErrorKind::ModelFile && error.message().contains("\"w\": holds 1e39"),
        "{error:?}"
    );
    // Half of its bytes are an error of the file, as for any other type.
    let cut = writer::GgufFile::new().tensor(writer::tensor("w", &[3, 2], 28, 0)).data(24).bytes();
    assert!(
        Gguf::from_bytes(Bytes::from_vec(cut), Path::new("x")).unwrap_err().message().contains("cut short")
    );
}

/// One tensor of a type that is not read spoils no file, and is refused by the name of its type.
#[test]
fn types_that_are_not_read_are_refused_when_asked_for() {
    let types: [(&str, usize); 19] = [
        ("BOOL", 8),
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("U8", 8),
        ("I8", 8),
        ("F8_E5M2", 8),
        ("F8_E4M3", 8),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("F8_E5M2FNUZ", 8),
        ("I16", 16),
        ("U16", 16),
        ("I32", 32),
        ("U32", 32),
        ("C64", 64),
        ("I64", 64),
        ("U64", 64),
        ("F64", 64),
    ];
    let mut tensors: Vec<_> =
        types.iter().map(|(dtype, bits)| (*dtype, *dtype, &[2, 6][..], 12 * bits / 8)).collect();
    tensors.push(("w", "F32", &[2, 6], 48));
    let weights = file_of(&tensors);
    weights.get("w").unwrap();
    weights.get("F64").unwrap();
    for (dtype, _) in types.iter().filter(|(dtype, _)| *dtype != "F64") {
        let error = weights.get(dtype).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedModel, "{dtype}");
        assert!(error.message().contains(&format!("is stored as {dtype}, which is not read")), "{error}");
        assert_eq!(weights.shape(dtype), Some(&[2, 6][..]));
    }
}

/// What stands beside or instead of a weight tells which format it is, where the configuration does not.
#[test]
fn packed_weights_are_named_by_their_tensors() {
    let (missing, unread) = ("is there instead", "is stored as");
    /// Tensors and their types, the one that is asked for, and the words of the error.
    type Row = (&'static [(&'static str, &'static str)], &'static str, &'static str);
    let rows: [Row; 18] = [
        (
            &[("q.qweight", "I32"), ("q.qzeros", "I32"), ("q.scales", "F16")],
            missing,
            "\"m.q.qweight\" is there instead: GPTQ or AWQ",
        ),
        (&[("q.qweight", "I32"), ("q.g_idx", "I32")], missing, "\"m.q.g_idx\" is there instead: GPTQ,"),
        (
            &[("q.weight_packed", "I32"), ("q.weight_scale", "BF16")],
            missing,
            "weight_packed\" is there instead: compressed-tensors,",
        ),
        (
            &[("q.weight_packed", "U8"), ("q.weight_global_scale", "F32")],
            missing,
            "NVFP4 of compressed-tensors",
        ),
        (&[("q._weight_qdata", "I8"), ("q._weight_scale", "F32")], missing, "torchao"),
        (&[("q.W_q", "U8")], missing, "HQQ"),
        (&[("q.codebooks", "F16"), ("q.codes", "I16")], missing, "AQLM"),
        (&[("q.other", "F32")], missing, "\"m.q.other\" is there instead"),
        (
            &[("q.weight", "F8_E4M3"), ("q.weight_scale_inv", "F32")],
            unread,
            "is stored as F8_E4M3, with \"m.q.weight_scale_inv\" beside it: FP8 by blocks",
        ),
        (&[("q.weight", "F8_E4M3"), ("q.weight_scale", "F32")], unread, "FP8, int8 or BitNet"),
        (&[("q.weight", "I8"), ("q.weight_scale", "BF16")], unread, "is stored as I8, with"),
        (
            &[("q.weight", "U8"), ("q.weight_scale", "F8_E4M3"), ("q.weight_scale_2", "F32")],
            unread,
            "NVFP4 of ModelOpt",
        ),
        (&[("q.weight", "U8"), ("q.weight.absmax", "F32")], unread, "bitsandbytes, 4 bits"),
        (&[("q.weight", "I8"), ("q.SCB", "F32")], unread, "bitsandbytes, 8 bits"),
        (
            &[("q.weight", "U32"), ("q.scales", "BF16"), ("q.biases", "BF16"), ("q.bias", "F32")],
            unread,
            "MLX",
        ),
        // Of another module, or no sign of anything: as it was.
        (
            &[("q2.qweight", "I32"), ("r.scales", "F16")],
            "there is no tensor \"m.q.weight\"",
            "\"m.q.weight\"",
        ),
        (
            &[("q.weight", "I64"), ("q.bias", "F32")],
            unread,
            "which is not read; use a file with another quantization",
        ),
        (&[("q.bias", "F32")], "there is no tensor \"m.q.weight\"", "\"m.q.weight\""),
    ];
    for (tensors, what, words) in rows {
        let names: Vec<_> = tensors.iter().map(|(name, _)| format!("m.{name}")).collect();
        let sized = tensors
            .iter()
            .zip(&names)
            .map(|((_, dtype), name)| (name.as_str(), *dtype, &[8][..], 8 * size(dtype)));
        let weights = file_of(&sized.collect::<Vec<_>>());
        let error = weights.get("m.q.weight").unwrap_err();
        let told = error.message();
        assert!(
            told.contains(what) && told.contains(words) && told.contains("file.x"),
            "{tensors:?}: {told}"
        );
        let named = told.ends_with("which is not run yet: use the original model or a GGUF file of it");
        let unsupported = error.kind() == ErrorKind::UnsupportedModel;
        assert!(unsupported == (named || what == unread), "{error:?}");
        let plain = tensors.iter().all(|(name, _)| matches!(*name, "q.bias" | "q.other"));
        assert_eq!(weights.packed().is_none(), plain, "{tensors:?}");
    }
}

fn size(dtype: &str) -> usize {
    match dtype {
        "I64" => 8,
        "I32" | "U32" | "F32" => 4,
        "I16" | "F16" | "BF16" => 2,
        _ => 1,
    }
}

fn matrix(n: usize, k: usize) -> WeightTensor {
    let values = (0..n * k).flat_map(|i| ((i as f32 * 0.37).sin() * 0.05).to_le_bytes()).collect();
    WeightTensor {
        name: "w".into(),
        dtype: WeightType::F32,
        shape: vec![n, k],
        data: Bytes::from_vec(values),
    }
}

/// Every format that can be made comes back near to what it was; a bound that the next smaller one breaks.
#[test]
fn quantization_comes_back() {
    let mut failed = Vec::new();
    for (ty, bound) in [
        (WeightType::Q8_0, 0.005),
        (WeightType::Q6K, 0.02),
        (WeightType::Q5_0, 0.04),
        (WeightType::Q5_1, 0.04),
        (WeightType::Q5K, 0.04),
        (WeightType::Q4_0, 0.08),
        (WeightType::Q4_1, 0.08),
        (WeightType::Q4K, 0.08),
        (WeightType::Q3K, 0.2),
        (WeightType::Q2K, 0.35),
    ] {
        let before = matrix(5, 512);
        let after = quantize(&before, ty, 2).unwrap();
        assert_eq!((after.dtype, &after.shape), (ty, &before.shape));
        assert_eq!(after.data.len(), 5 * ty.row_bytes(512).unwrap());
        let (before, after) = (before.to_f32(), after.to_f32());
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>();
        let error = square(&mut before.iter().zip(&after).map(|(a, b)| a - b));
        let error = (error / square(&mut before.iter().copied())).sqrt();
        if error > bound || error < bound / 5.0 {
            failed.push(format!("{ty}: the relative error is {error:.4}, the bound {bound}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn quantization_follows_its_rule() {
    let rows = [
        ("whole superblocks", vec![4, 512], WeightType::Q4K, Some(WeightType::Q4K)),
        ("only whole blocks", vec![4, 288], WeightType::Q4K, Some(WeightType::Q5_0)),
        ("only whole blocks, more bits", vec![4, 288], WeightType::Q6K, Some(WeightType::Q8_0)),
        ("only whole blocks, fewer bits", vec![4, 288], WeightType::Q2K, Some(WeightType::Q4_1)),
        ("whole blocks are enough", vec![4, 288], WeightType::Q4_0, Some(WeightType::Q4_0)),
        ("no whole blocks", vec![4, 48], WeightType::Q4_0, None),
        ("no whole blocks for K either", vec![4, 48], WeightType::Q6K, None),
        ("a vector", vec![1024], WeightType::Q8_0, None),
        ("no rows", vec![0, 512], WeightType::Q8_0, None),
        ("no columns", vec![512, 0], WeightType::Q8_0, None),
    ];
    for (name, shape, to, wanted) in rows {
        let mut tensor = matrix(1, shape.iter().product());
        tensor.shape = shape;
        let found = quantize(&tensor, to, 2).unwrap();
        assert_eq!(found.dtype, wanted.unwrap_or(WeightType::F32), "{name}");
        assert_eq!(found.data.same(&tensor.data), wanted.is_none(), "{name}");
    }
    // More than one slab, and the same as row by row.
    let large = matrix(2100, 512);
    let last = WeightTensor {
        shape: vec![1, 512],
        data: large.data.slice(2099 * 2048..2100 * 2048).unwrap(),
        ..large.clone()
    };
    let (large, last) =
        (quantize(&large, WeightType::Q4K, 2).unwrap(), quantize(&last, WeightType::Q4K, 2).unwrap());
    assert_eq!(large.data[2099 * 288..], *last.data);
    let alone = quantize(&matrix(7, 512), WeightType::Q4K, 1).unwrap();
    assert_eq!(*alone.data, *quantize(&matrix(7, 512), WeightType::Q4K, 3).unwrap().data, "threads");
    let again = quantize(&alone, WeightType::Q8_0, 2).unwrap();
    assert!(again.data.same(&alone.data), "what is quantized stays as it is");
    for to in [WeightType::F16, WeightType::Iq4Xs] {
        assert_eq!(quantize(&matrix(1, 256), to, 2).unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
    for bad in [f32::NAN, f32::INFINITY, 1e6] {
        let mut bytes = matrix(1, 256).data.to_vec();
        bytes[40..44].copy_from_slice(&bad.to_le_bytes());
        let tensor = WeightTensor { data: Bytes::from_vec(bytes), ..matrix(1, 256) };
        assert_eq!(quantize(&tensor, WeightType::Q4K, 2).unwrap_err().kind(), ErrorKind::ModelFile, "{bad}");
    }
}
