//! Writes small model files, sound ones and ones that lie: every number can be set apart from what is there.

/// A GGUF file to be.
#[derive(Clone)]
pub struct GgufFile {
    pub magic: [u8; 4],
    pub version: u32,
    pub pairs: Vec<(Vec<u8>, Vec<u8>)>,
    pub tensors: Vec<TensorEntry>,
    /// What the header claims, where it is not the truth.
    pub pair_count: Option<u64>,
    pub tensor_count: Option<u64>,
    pub alignment: usize,
    pub data: Vec<u8>,
}

#[derive(Clone)]
pub struct TensorEntry {
    pub name: Vec<u8>,
    /// Innermost first, as in the file.
    pub dims: Vec<u64>,
    pub dim_count: Option<u32>,
    pub ty: u32,
    pub offset: u64,
}

pub fn tensor(name: &str, dims: &[u64], ty: u32, offset: u64) -> TensorEntry {
    TensorEntry { name: name.into(), dims: dims.to_vec(), dim_count: None, ty, offset }
}

impl GgufFile {
    pub fn new() -> Self {
        GgufFile {
            magic: *b"GGUF",
            version: 3,
            pairs: Vec::new(),
            tensors: Vec::new(),
            pair_count: None,
            tensor_count: None,
            alignment: 32,
            data: Vec::new(),
        }
    }

    /// A value is its type id and its bytes: see the functions below.
    pub fn pair(mut self, key: &str, value: Vec<u8>) -> Self {
        self.pairs.push((key.into(), value));
        self
    }

    pub fn tensor(mut self, entry: TensorEntry) -> Self {
        self.tensors.push(entry);
        self
    }

    pub fn data(mut self, len: usize) -> Self {
        self.data = (0..len).map(|i| (i * 7) as u8).collect();
        self
    }

    pub fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            out.extend(text(key));
            out.extend(value);
        }
        for entry in &self.tensors {
            out.extend(text(&entry.name));
            out.extend(entry.dim_count.unwrap_or(entry.dims.len() as u32).to_le_bytes());
            entry.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(entry.ty.to_le_bytes());
            out.extend(entry.offset.to_le_bytes());
        }
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

/// A length and the text.
pub fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// A value: a type id and raw bytes.
pub fn value(ty: u32, bytes: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes(), bytes].concat()
}

pub fn u32_value(number: u32) -> Vec<u8> {
    value(4, &number.to_le_bytes())
}

pub fn u16_value(number: u16) -> Vec<u8> {
    value(2, &number.to_le_bytes())
}

pub fn str_value(string: &str) -> Vec<u8> {
    value(8, &text(string.as_bytes()))
}

/// An array's bytes without the type id 9: element type, claimed length, elements.
pub fn array(ty: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes(), count.to_le_bytes().as_slice(), elements].concat()
}

pub fn array_value(ty: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    value(9, &array(ty, count, elements))
}

/// A safetensors file from its header's JSON and its data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// One value of each of the thirteen types, under the keys `t0` to `t12`, and arrays of each as `a0` to
/// `a12`.
pub fn every_type() -> GgufFile {
    let scalars: [&[u8]; 13] = [
        &[200],
        &[0xfe],
        &60_000u16.to_le_bytes(),
        &(-2i16).to_le_bytes(),
        &4_000_000_000u32.to_le_bytes(),
        &(-2i32).to_le_bytes(),
        &1.5f32.to_le_bytes(),
        &[1],
        &text("hé".as_bytes()),
        &array(4, 2, &[1, 0, 0, 0, 2, 0, 0, 0]),
        &u64::MAX.to_le_bytes(),
        &i64::MIN.to_le_bytes(),
        &2.5f64.to_le_bytes(),
    ];
    scalars.iter().enumerate().fold(GgufFile::new(), |file, (ty, bytes)| {
        let array = array_value(ty as u32, 2, &[*bytes, *bytes].concat());
        file.pair(&format!("t{ty}"), value(ty as u32, bytes)).pair(&format!("a{ty}"), array)
    })
}

/// A small sound file: metadata of every type, an F32 matrix, a Q4_0 matrix and a tensor of an unread type.
pub fn sound() -> GgufFile {
    every_type()
        .tensor(tensor("a", &[4, 3], 0, 0))
        .tensor(tensor("b", &[64, 2], 2, 64))
        .tensor(tensor("odd", &[256], 9, 160))
        .data(160)
}
