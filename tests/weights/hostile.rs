//! Files that are wrong, each with the kind of error and the words that must answer it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tallow::error::{Error, ErrorKind};
use tallow::weights::{Bytes, Format, Gguf, Weights, detect, safetensors};

use crate::allocations;
use crate::writer::*;

/// Runs every row and tells all that fail. A row: name, bytes, kind, and words of the message.
fn check<T>(open: impl Fn(Bytes) -> Result<T, Error>, rows: &[(&str, Vec<u8>, ErrorKind, &str)]) {
    let mut failed = Vec::new();
    for (name, bytes, kind, words) in rows {
        // What may be asked for at once: a few times the file, and a little for messages and tables.
        let most = 4 * bytes.len() + 4096;
        let bytes = Bytes::from_vec(bytes.clone());
        let (result, largest) = allocations::largest(|| catch_unwind(AssertUnwindSafe(|| open(bytes))));
        let problem = match result {
            Err(_) => "it panicked".to_owned(),
            Ok(Ok(_)) => "it was taken for sound".to_owned(),
            Ok(Err(error)) if error.kind() != *kind => format!("it is {error:?}"),
            Ok(Err(error)) if !error.message().contains(words) => format!("it says: {error}"),
            Ok(Err(error)) if !error.message().contains("file.x") => format!("no file is named: {error}"),
            _ if largest > most => format!("it asked for {largest} bytes at once"),
            _ => continue,
        };
        failed.push(format!("{name}: expected {kind:?} with {words:?}, but {problem}"));
    }
    assert!(failed.is_empty(), "{} of {} rows failed:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

fn gguf(bytes: Bytes) -> Result<Gguf, Error> {
    Gguf::from_bytes(bytes, Path::new("file.x"))
}

use ErrorKind::{ModelFile, UnsupportedModel};

fn with_tensor(dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    GgufFile::new().tensor(tensor("w", dims, ty, offset)).data(4096).bytes()
}

fn with_pair(value: Vec<u8>) -> Vec<u8> {
    GgufFile::new().pair("key", value).bytes()
}

fn with_alignment(alignment: u32) -> Vec<u8> {
    GgufFile::new()
        .pair("general.alignment", u32_value(alignment))
        .tensor(tensor("w", &[4], 0, 0))
        .data(64)
        .bytes()
}

fn nested(depth: usize) -> Vec<u8> {
    let inner = array(4, 1, &[1, 0, 0, 0]);
    value(9, &(1..depth).fold(inner, |inner, _| array(9, 1, &inner)))
}

#[test]
fn gguf_headers_that_lie() {
    let file = GgufFile::new;
    let counts = |pairs, tensors| GgufFile { pair_count: pairs, tensor_count: tensors, ..sound() }.bytes();
    check(
        gguf,
        &[
            ("empty", vec![], ModelFile, "magic number"),
            ("another magic", b"GGML\x03\0\0\0".to_vec(), ModelFile, "does not begin with"),
            ("version 0", GgufFile { version: 0, ..file() }.bytes(), UnsupportedModel, "version 0"),
            ("version 1", GgufFile { version: 1, ..file() }.bytes(), UnsupportedModel, "version 1"),
            ("version 4", GgufFile { version: 4, ..file() }.bytes(), UnsupportedModel, "version 4"),
            ("big endian", GgufFile { version: 3 << 24, ..file() }.bytes(), UnsupportedModel, "big endian"),
            ("2^63 keys", counts(Some(1 << 63), None), ModelFile, "metadata keys are announced"),
            ("2^64-1 keys", counts(Some(u64::MAX), None), ModelFile, "metadata keys are announced"),
            ("a key too many", counts(Some(27), None), ModelFile, "cut short"),
            ("2^63 tensors", counts(None, Some(1 << 63)), ModelFile, "tensors are announced"),
            ("2^32 tensors", counts(None, Some(1 << 32)), ModelFile, "tensors are announced"),
            ("alignment 0", with_alignment(0), ModelFile, "general.alignment is 0"),
            ("alignment 1", with_alignment(1), ModelFile, "general.alignment is 1"),
            ("alignment 3", with_alignment(3), ModelFile, "general.alignment is 3"),
            ("alignment 48", with_alignment(48), ModelFile, "general.alignment is 48"),
            ("alignment 2^31", with_alignment(1 << 31), ModelFile, "general.alignment is 2147483648"),
            (
                "alignment as text",
                file().pair("general.alignment", str_value("32")).bytes(),
                ModelFile,
                "\"general.alignment\" should hold an integer",
            ),
            (
                "a key twice",
                file().pair("k", u32_value(1)).pair("k", u32_value(2)).bytes(),
                ModelFile,
                "\"k\" is there twice",
            ),
            (
                "a key that is not UTF-8",
                GgufFile { pairs: vec![(vec![0xff], u32_value(1))], ..file() }.bytes(),
                ModelFile,
                "not UTF-8",
            ),
            (
                "an endless key",
                GgufFile { pairs: vec![(vec![b'k'; 70_000], u32_value(1))], ..file() }.bytes(),
                ModelFile,
                "the limit is 65535",
            ),
        ],
    );
}

#[test]
fn gguf_values_that_lie() {
    let mut rows = vec![
        ("value type 13", with_pair(value(13, &[0; 8])), ModelFile, "13 is not a metadata value type"),
        ("value type 2^32-1", with_pair(value(u32::MAX, &[0; 8])), ModelFile, "is not a metadata value type"),
        (
            "array of type 13",
            with_pair(array_value(13, 1, &[0; 8])),
            ModelFile,
            "13 is not a metadata value type",
        ),
        (
            "string of 2^63",
            with_pair(value(8, &(1u64 << 63).to_le_bytes())),
            ModelFile,
            "9223372036854775808 bytes",
        ),
        ("string of 2^64-1", with_pair(value(8, &u64::MAX.to_le_bytes())), ModelFile, "a string needs"),
        ("array 65 deep", with_pair(nested(65)), ModelFile, "nested more than 64"),
        ("array 5000 deep", with_pair(nested(5000)), ModelFile, "nested more than 64"),
    ];
    for ty in 0..13 {
        for count in [1 << 20, 1 << 40, 1 << 62, u64::MAX] {
            let bytes = with_pair(array_value(ty, count, &[0; 64]));
            rows.push(("an array longer than the file", bytes, ModelFile, "an array's length is"));
        }
        rows.push((
            "no value at all",
            GgufFile::new().pair("key", value(ty, &[])).header(),
            ModelFile,
            "\"key\"",
        ));
    }
    check(gguf, &rows);
    gguf(Bytes::from_vec(with_pair(nested(64)))).expect("64 deep is allowed");
}

#[test]
fn gguf_tensors_that_lie() {
    let file = || GgufFile::new().data(4096);
    let five = TensorEntry { dim_count: Some(5), ..tensor("w", &[1, 1, 1, 1, 1], 0, 0) };
    let many = TensorEntry { dim_count: Some(u32::MAX), ..tensor("w", &[1], 0, 0) };
    let no_utf8 = TensorEntry { name: vec![0xc3, 0x28], ..tensor("", &[1], 0, 0) };
    let two = |a, b| file().tensor(a).tensor(b).bytes();
    check(
        gguf,
        &[
            ("5 dimensions", file().tensor(five).bytes(), ModelFile, "5 dimensions"),
            ("2^32-1 dimensions", file().tensor(many).bytes(), ModelFile, "dimensions"),
            ("2^40 x 2^40", with_tensor(&[1 << 40, 1 << 40], 0, 0), ModelFile, "larger than any memory"),
            (
                "2^40 x 2^40, Q4_K",
                with_tensor(&[1 << 40, 1 << 40], 12, 0),
                ModelFile,
                "larger than any memory",
            ),
            ("2^32 four times", with_tensor(&[1 << 32; 4], 8, 0), ModelFile, "larger than any memory"),
            ("2^63 x 2", with_tensor(&[1 << 63, 2], 1, 0), ModelFile, "larger than any memory"),
            ("no weights", with_tensor(&[0, 4], 0, 0), ModelFile, "zero"),
            ("2^30 weights", with_tensor(&[1 << 30], 0, 0), ModelFile, "cut short"),
            ("one weight too many", with_tensor(&[1025], 0, 0), ModelFile, "cut short"),
            ("no whole block", with_tensor(&[33, 2], 2, 0), ModelFile, "whole blocks of 32"),
            ("no whole superblock", with_tensor(&[32, 8], 12, 0), ModelFile, "whole blocks of 256"),
            ("offset past the end", with_tensor(&[4], 0, 4096), ModelFile, "cut short"),
            ("offset 2^63", with_tensor(&[4], 0, 1 << 63), ModelFile, "cut short"),
            ("offset 2^64-32", with_tensor(&[8], 0, u64::MAX - 31), ModelFile, "too large"),
            ("unread type past the end", with_tensor(&[4], 9, 8192), ModelFile, "cut short"),
            ("offset not aligned", with_tensor(&[4], 0, 4), ModelFile, "not a multiple of 32"),
            (
                "overlap",
                two(tensor("a", &[16], 0, 0), tensor("b", &[16], 0, 32)),
                ModelFile,
                "\"a\" and \"b\" overlap",
            ),
            ("the same place", two(tensor("a", &[4], 0, 64), tensor("b", &[4], 0, 64)), ModelFile, "overlap"),
            (
                "a name twice",
                two(tensor("a", &[4], 0, 0), tensor("a", &[4], 0, 32)),
                ModelFile,
                "\"a\" is there twice",
            ),
            ("a name that is not UTF-8", file().tensor(no_utf8).bytes(), ModelFile, "not UTF-8"),
        ],
    );
}

#[test]
fn gguf_cut_short_at_every_byte() {
    let bytes = sound().bytes();
    gguf(Bytes::from_vec(bytes.clone())).expect("the whole file is sound");
    let rows: Vec<_> =
        (0..bytes.len()).map(|len| ("cut", bytes[..len].to_vec(), ModelFile, "cut short")).collect();
    check(gguf, &rows);
}

#[test]
fn safetensors_headers_that_lie() {
    let open = |bytes: Bytes| safetensors::from_bytes(bytes, Path::new("file.x"));
    let one = |shape: &str, from: &str, to: &str| {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#);
        safetensors(&header, &[0; 16])
    };
    open(Bytes::from_vec(one("[4]", "0", "16"))).expect("the sound one");
    let twice = |first: &str, second: &str| {
        let entry = |dtype| {
            format!(
                r#""a":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,{}]}}"#,
                if dtype == "F32" { 16 } else { 8 }
            )
        };
        safetensors(&format!("{{{},{}}}", entry(first), entry(second)), &[0; 16])
    };
    let half = |shape: &str, bytes: usize| {
        let header = format!(r#"{{"a":{{"dtype":"F4","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#);
        safetensors(&header, &[0; 16][..bytes])
    };
    let long = |len: u64| [&len.to_le_bytes(), b"{}".as_slice()].concat();
    let deep = format!(r#"{{"a":{}"#, "[".repeat(100_000));
    // Sixteen times 2^60 bytes are 2^64, and one byte less is a size that a careless sum overflows with.
    let sixteen = |last: u128| {
        let entry = |i: u128| {
            let (from, size) = (i << 60, if i < 15 { 1 << 60 } else { last });
            format!(r#""{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{from},{}]}}"#, size, from + size)
        };
        safetensors(&format!("{{{}}}", (0..16).map(entry).collect::<Vec<_>>().join(",")), &[])
    };
    check(
        open,
        &[
            ("empty", vec![], ModelFile, "empty"),
            ("no length", vec![1, 0, 0], ModelFile, "neither"),
            ("2^63 of header", long(1 << 63), ModelFile, "neither"),
            ("2^31 of header", long(1 << 31), ModelFile, "limit"),
            ("header past the end", long(50), ModelFile, "cut short"),
            ("no JSON", safetensors("{]", &[]), ModelFile, "malformed"),
            ("deep JSON", safetensors(&deep, &[]), ModelFile, "malformed"),
            ("not UTF-8", [&[3, 0, 0, 0, 0, 0, 0, 0], b"{\xff}".as_slice()].concat(), ModelFile, "malformed"),
            ("data cut", one("[8]", "0", "32"), ModelFile, "download it again"),
            ("data too long", one("[2]", "0", "8"), ModelFile, "download it again"),
            ("a gap", one("[2]", "8", "16"), ModelFile, "malformed"),
            ("reversed", one("[4]", "16", "0"), ModelFile, "malformed"),
            ("another size", one("[5]", "0", "16"), ModelFile, "malformed"),
            ("2^40 x 2^40", one("[1099511627776,1099511627776]", "0", "16"), ModelFile, "malformed"),
            ("a negative size", one("[-4]", "0", "16"), ModelFile, "malformed"),
            ("sizes past 2^64", sixteen(1 << 60), ModelFile, "malformed"),
            ("a name twice", twice("F32", "F32"), ModelFile, "the tensor \"a\" is there twice"),
            ("a name twice as two types", twice("F16", "BF16"), ModelFile, "\"a\" is there twice"),
            ("half a byte too many", half("[3]", 2), ModelFile, "at the tensor \"a\""),
            ("a byte too many", half("[2]", 2), ModelFile, "at the tensor \"a\""),
            ("sizes near 2^64", sixteen((1 << 60) - 1), ModelFile, "download it again"),
        ],
    );
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let open = |bytes: Bytes| {
        let path = dir.path().join("file.x");
        std::fs::write(&path, &*bytes).unwrap();
        detect(&path)
    };
    check(
        open,
        &[
            ("zip", b"PK\x03\x04 archive/data.pkl".to_vec(), UnsupportedModel, "never loaded"),
            ("pickle", b"\x80\x02ctorch._utils\n".to_vec(), UnsupportedModel, "never loaded"),
            (
                "LFS",
                b"version https://git-lfs.github.com/spec/v1\noid".to_vec(),
                ModelFile,
                "Git LFS pointer",
            ),
            ("HTML", b"\n <!DOCTYPE html><html>".to_vec(), ModelFile, "web page"),
            ("ggml", b"tjgg\x01\0\0\0".to_vec(), UnsupportedModel, "before GGUF"),
            ("empty", vec![], ModelFile, "empty"),
            ("text", b"hello".to_vec(), ModelFile, "neither"),
        ],
    );
    // A safetensors header may be 640 bytes long: as first bytes the same as pickle's.
    let header = format!("{:640}", "{}");
    for (bytes, format) in [
        (safetensors(&header, &[]), Format::Safetensors),
        (b"{\"weight_map\": {}}".to_vec(), Format::Safetensors),
        (GgufFile::new().bytes(), Format::Gguf),
    ] {
        assert_eq!(open(Bytes::from_vec(bytes)).unwrap(), format);
    }
}

#[test]
fn shards_are_files_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model.file.x");
    std::fs::create_dir(&folder).unwrap();
    let shard = safetensors(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, &[0; 16]);
    std::fs::write(folder.join("one.safetensors"), &shard).unwrap();
    std::fs::write(dir.path().join("outside.safetensors"), &shard).unwrap();
    std::fs::write(folder.join("model.bin"), b"\x80\x02").unwrap();
    let absolute = dir.path().join("outside.safetensors").display().to_string();
    let open = |bytes: Bytes| {
        std::fs::write(folder.join("model.safetensors.index.json"), &*bytes).unwrap();
        Weights::open(&folder)
    };
    let index = |tensor: &str, shard: &str| {
        format!(r#"{{"weight_map": {{{tensor:?}: {}}}}}"#, serde_json::to_string(shard).unwrap()).into_bytes()
    };
    let weights = open(Bytes::from_vec(index("a", "one.safetensors"))).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a"]);
    assert_eq!(weights.source(), folder);
    let mut rows = vec![
        ("a missing shard", index("a", "two.safetensors"), ModelFile, "two.safetensors"),
        ("a missing tensor", index("b", "one.safetensors"), ModelFile, "\"b\""),
        ("a pickle as shard", index("a", "model.bin"), UnsupportedModel, "never loaded"),
        ("no index", b"{}".to_vec(), ModelFile, "weight_map"),
        ("no text", b"{\"weight_map\": {\"a\": 3}}".to_vec(), ModelFile, "no index"),
    ];
    let outside = [
        "../outside.safetensors",
        "./../outside.safetensors",
        "..\\outside.safetensors",
        "x/../../outside.safetensors",
        "sub/one.safetensors",
        "./one.safetensors",
        "one.safetensors/",
        "C:outside.safetensors",
        "one.safetensors\0",
        "..",
        ".",
        "",
        &absolute,
    ];
    rows.extend(outside.map(|name| ("outside", index("a", name), ModelFile, "not a plain file name")));
    check(open, &rows);
}
