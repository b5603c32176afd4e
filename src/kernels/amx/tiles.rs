//! The tile registers of AMX: a trait over the few instructions that products need, the instructions
//! themselves, and an emulator of them.
//!
//! Eight registers of up to sixteen rows of up to 64 bytes; a configuration says how many of each.
//! [`Tiles::dot`] adds to `C` (16 x 16 i32) the product of signed bytes `A` (16 rows of `k`) and signed bytes
//! `B` (`k / 4` rows: lane `n` of row `j` has weights `4j..4j + 4` of column `n`, which is a group of
//! [`layouts`](crate::kernels::layouts)).
//!
//! The instructions come as inline assembly, since their intrinsics are not stable Rust. [`Emulated`] follows
//! the pseudocode and the exceptions of Intel's SDM, volume 2 (LDTILECFG, TILELOADD, TDPBSSD, TILESTORED):
//! the tests run the kernels over it on any machine, and a machine is believed to have AMX only after both
//! gave the same bytes.

use crate::error::{Error, Result};
use crate::kernels::isa::Isa;
use crate::kernels::panels::AMX_ROWS as ROWS;

/// Bytes of a row of a tile, at most.
const COLUMNS: usize = 64;

/// The registers: four of `C`, two each of `A` and `B`, of which the kernels need the first ones.
pub(in crate::kernels) const C: usize = 0;
pub(in crate::kernels) const A: usize = 4;
pub(in crate::kernels) const B: usize = 6;

/// What LDTILECFG reads.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::kernels) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each register; eight are there.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// What a thread has that uses no tiles.
    const NONE: Config =
        Config { palette: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };

    /// For products of `width` bytes, 16 or 32.
    pub(in crate::kernels) const fn of(width: usize) -> Config {
        let mut config = Config { palette: 1, ..Self::NONE };
        let mut tile = 0;
        while tile < 8 {
            let is_a = tile == A || tile == A + 1;
            config.row_bytes[tile] = if is_a { width as u16 } else { COLUMNS as u16 };
            config.rows[tile] = if tile < B { ROWS as u8 } else { (width / 4) as u8 };
            tile += 1;
        }
        config
    }
}

/// Configured tile registers; they are released when this is dropped. Registers are named by constants, as
/// the instructions name them.
///
/// # Safety
/// Where AMX was detected. Addresses are good for all rows of the register, `stride` bytes apart.
pub(in crate::kernels) trait Tiles {
    unsafe fn configure(config: &Config) -> Self;
    unsafe fn zero<const T: usize>(&mut self);
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize);
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize);
    /// `C += A * B`, of signed bytes.
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
}

/// The machine's own. It belongs to the thread that configured it, and gives back the configuration that the
/// thread had before: candle configures a thread's tiles once and takes them as its own from then on, so that
/// its next product after a mere release was an illegal instruction.
#[cfg(target_arch = "x86_64")]
pub(in crate::kernels) struct Amx {
    before: Config,
    _thread: std::marker::PhantomData<*mut u8>,
}

/// Assembly that may change any tile register and nothing else. Rust never keeps anything in them, so that
/// what one block leaves there the next one finds (blocks that are not `pure` keep their order).
#[cfg(target_arch = "x86_64")]
macro_rules! tile_asm {
    ($text:literal, $($rest:tt)*) => {
        std::arch::asm!($text, out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            out("tmm5") _, out("tmm6") _, out("tmm7") _, $($rest)*)
    };
}

#[cfg(target_arch = "x86_64")]
impl Tiles for Amx {
    #[inline(always)]
    unsafe fn configure(config: &Config) -> Self {
        let mut before = Config::NONE;
        // SAFETY: the machine has AMX, by the trait's contract; 64 bytes of `before` are written, and 64 of
        // `config` are read.
        unsafe {
            tile_asm!("sttilecfg [{at}]", at = in(reg) &mut before, options(nostack, preserves_flags));
            tile_asm!("ldtilecfg [{at}]", at = in(reg) config, options(nostack, readonly, preserves_flags));
        }
        Amx { before, _thread: std::marker::PhantomData }
    }
    #[inline(always)]
    unsafe fn zero<const T: usize>(&mut self) {
        // SAFETY: the machine has AMX and its tiles are configured while `self` lives; no memory is touched.
        unsafe { tile_asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: as `zero`; the caller promises that all rows of the register can be read, `stride` bytes
        // apart.
        unsafe {
            tile_asm!("tileloadd tmm{t}, [{at} + {stride}*1]",
                t = const T, at = in(reg) from, stride = in(reg) stride,
                options(nostack, readonly, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: as `zero`; the caller promises that all rows of the register can be written, `stride` bytes
        // apart.
        unsafe {
            tile_asm!("tilestored [{at} + {stride}*1], tmm{t}",
                t = const T, at = in(reg) to, stride = in(reg) stride, options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: as `zero`.
        unsafe {
            tile_asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Amx {
    #[inline(always)]
    fn drop(&mut self) {
        let before = &self.before;
        // SAFETY: the machine has AMX, or this would not be; the configuration is one that it stored itself.
        // Without tiles in use, switching threads is cheaper, and the processor may sleep deeper.
        unsafe {
            match before.palette {
                0 => tile_asm!("tilerelease", options(nostack, nomem, preserves_flags)),
                _ => tile_asm!("ldtilecfg [{at}]", at = in(reg) before,
                    options(nostack, readonly, preserves_flags)),
            }
        }
    }
}

/// The instructions in plain Rust. It panics where they would raise an exception.
pub(in crate::kernels) struct Emulated {
    config: Config,
    tiles: [[[u8; COLUMNS]; ROWS]; 8],
}

impl Emulated {
    /// Rows, and bytes of a row.
    fn shape(&self, tile: usize) -> (usize, usize) {
        (usize::from(self.config.rows[tile]), usize::from(self.config.row_bytes[tile]))
    }
}

impl Tiles for Emulated {
    unsafe fn configure(config: &Config) -> Self {
        let Config { palette, start_row, reserved, row_bytes, rows } = *config;
        assert!(palette == 1 && start_row == 0 && reserved == [0; 14], "a configuration of no palette");
        for (tile, (&rows, &bytes)) in rows.iter().zip(&row_bytes).enumerate() {
            let fits = usize::from(rows) <= ROWS && usize::from(bytes) <= COLUMNS;
            assert!(fits && (rows == 0) == (bytes == 0) && (tile < 8 || rows == 0), "shape of tile {tile}");
        }
        Emulated { config: *config, tiles: [[[0; COLUMNS]; ROWS]; 8] }
    }
    unsafe fn zero<const T: usize>(&mut self) {
        assert!(self.shape(T).0 > 0, "tile {T} is not configured");
        self.tiles[T] = [[0; COLUMNS]; ROWS];
    }
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: `zero` of the emulator asks for nothing.
        unsafe { self.zero::<T>() };
        let (rows, bytes) = self.shape(T);
        for (row, to) in self.tiles[T].iter_mut().take(rows).enumerate() {
            // SAFETY: the caller promises that `bytes` of each row can be read; a register has room for so
            // many (`configure`).
            unsafe { std::ptr::copy_nonoverlapping(from.add(row * stride), to.as_mut_ptr(), bytes) };
        }
    }
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
        let (rows, bytes) = self.shape(T);
        assert!(rows > 0, "tile {T} is not configured");
        for (row, from) in self.tiles[T].iter().take(rows).enumerate() {
            // SAFETY: the caller promises that `bytes` of each row can be written, elsewhere than in this
            // struct.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.add(row * stride), bytes) };
        }
    }
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let ((rows, bytes), (a_rows, k), (groups, b_bytes)) = (self.shape(C), self.shape(A), self.shape(B));
        assert!(C != A && C != B && A != B, "one tile twice");
        assert!(rows > 0 && rows == a_rows && bytes == b_bytes && k == 4 * groups, "shapes of a product");
        assert!(bytes % 4 == 0 && k % 4 == 0, "rows of whole numbers");
        let (a, b) = (self.tiles[A], self.tiles[B]);
        for (sums, a) in self.tiles[C].iter_mut().zip(&a).take(rows) {
            let sums = sums.as_chunks_mut::<4>().0;
            for (a, b) in a.as_chunks::<4>().0.iter().zip(&b).take(groups) {
                for (sum, b) in sums.iter_mut().zip(b.as_chunks::<4>().0).take(bytes / 4) {
                    let products = a.iter().zip(b).map(|(&a, &b)| i32::from(a as i8) * i32::from(b as i8));
                    *sum = products.fold(i32::from_le_bytes(*sum), i32::wrapping_add).to_le_bytes();
                }
            }
        }
    }
}

/// If this is the tier of AMX, whether its instructions do what the emulator says. Computed once.
///
/// # Errors
/// `Device` when they do not.
#[cfg(target_arch = "x86_64")]
pub(in crate::kernels) fn self_check(isa: Isa) -> Result<()> {
    static AGREES: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // SAFETY: an `Isa` with AMX exists only where the machine and the system have it; the emulator needs
    // nothing.
    if !isa.has_amx() || *AGREES.get_or_init(|| unsafe { agrees::<Amx, Emulated>() }) {
        return Ok(());
    }
    Err(Error::device(
        "this machine says that it has AMX, but its tiles compute something else; set TALLOW_ISA=avx512bf16",
    ))
}

/// Whether two kinds of tiles give the same bytes for both configurations and all registers.
///
/// # Safety
/// As [`Tiles`], of both.
unsafe fn agrees<T: Tiles, U: Tiles>() -> bool {
    // SAFETY: the caller's promise.
    [16, 32].into_iter().all(|width| unsafe { exercise::<T>(width) == exercise::<U>(width) })
}

/// Loads, zeroes, adds up twice and stores, with strides of its own, over bytes of all values.
///
/// # Safety
/// As [`Tiles`].
unsafe fn exercise<T: Tiles>(width: usize) -> Vec<u8> {
    const STRIDE: usize = 80;
    let byte = |i: usize| (i * i * 31 + i * 7 + 129) as u8;
    let a: Vec<u8> = (0..ROWS * STRIDE).map(byte).collect();
    let b: Vec<u8> = (1000..1000 + ROWS * COLUMNS).map(|i| byte(i) | 0x81).collect();
    let mut out = vec![0xaa; 4 * ROWS * STRIDE];
    // SAFETY: sixteen rows of at most 64 bytes fit at each of the strides.
    unsafe {
        let mut tiles = T::configure(&Config::of(width));
        macro_rules! product {
            ($c:literal, $a:literal, $b:literal) => {
                tiles.load::<$a>(a.as_ptr(), STRIDE);
                tiles.load::<$b>(b.as_ptr(), COLUMNS);
                tiles.zero::<$c>();
                tiles.dot::<$c, $a, $b>();
                tiles.load::<$a>(a.as_ptr().add(STRIDE - COLUMNS), STRIDE - $c);
                tiles.dot::<$c, $a, $b>();
                tiles.store::<$c>(out.as_mut_ptr().add($c * ROWS * STRIDE), STRIDE);
            };
        }
        product!(0, 4, 6);
        product!(1, 5, 7);
        product!(2, 4, 6);
        product!(3, 5, 7);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One product by the formula, at the places that the tiles are to put it.
    #[test]
    fn a_product_is_of_signed_rows_and_signed_columns() {
        for width in [16, 32] {
            let a: Vec<i8> = (0..ROWS * width).map(|i| (i * 37 + 11) as u8 as i8).collect();
            let b: Vec<u8> = (0..width * ROWS).map(|i| (i * 91 + 200) as u8).collect();
            let mut sums = [[7; ROWS]; ROWS];
            // SAFETY: `a` has sixteen rows of `width`, `b` has `width / 4` rows of 64, `sums` sixteen of 64.
            unsafe {
                let mut tiles = Emulated::configure(&Config::of(width));
                tiles.load::<A>(a.as_ptr().cast(), width);
                tiles.load::<B>(b.as_ptr(), COLUMNS);
                tiles.load::<1>(sums.as_ptr().cast(), COLUMNS);
                tiles.dot::<1, A, B>();
                tiles.store::<1>(sums.as_mut_ptr().cast(), COLUMNS);
            }
            for (m, row) in sums.iter().enumerate() {
                for (n, &sum) in row.iter().enumerate() {
                    let weight = |k: usize| i32::from(b[k / 4 * COLUMNS + 4 * n + k % 4] as i8);
                    let want: i32 = (0..width).map(|k| i32::from(a[m * width + k]) * weight(k)).sum();
                    assert_eq!(sum, want + 7, "row {m}, column {n} of width {width}");
                }
            }
        }
    }

    /// Another user of tiles on the thread goes on with its own, whatever we computed in between.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn an_inner_configuration_gives_the_outer_one_back() {
        for _ in Isa::available().into_iter().filter(|isa| isa.has_amx()) {
            // SAFETY: the machine has AMX; sixteen rows of 64 bytes can be written.
            unsafe {
                let mut outer = Amx::configure(&Config::of(16));
                assert_eq!(exercise::<Amx>(32), exercise::<Emulated>(32));
                let mut sums = [[7; ROWS]; ROWS];
                outer.zero::<1>();
                outer.store::<1>(sums.as_mut_ptr().cast(), COLUMNS);
                assert_eq!(sums, [[0; ROWS]; ROWS]);
            }
        }
    }

    #[test]
    fn what_the_self_test_computes_depends_on_every_step() {
        // SAFETY: the emulator needs nothing of the machine.
        unsafe {
            assert!(agrees::<Emulated, Emulated>());
            let (narrow, wide) = (exercise::<Emulated>(16), exercise::<Emulated>(32));
            assert_ne!(narrow, wide);
            let tiles: Vec<_> = wide.chunks_exact(wide.len() / 4).collect();
            assert!(tiles.windows(2).all(|pair| pair[0] != pair[1]), "the strides differ");
        }
    }
}
