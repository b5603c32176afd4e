//! Tiers of CPU instructions: one source, compiled once a tier.
//!
//! A kernel is an `#[inline(always)]` function over [`Simd`](super::simd::Simd). The macro [`tiered!`]
//! compiles it inside a function for each tier and picks one by an [`Isa`], which can only be had when the
//! machine has those instructions. All tiers agree to the last bit; `scalar` is the oracle. (On x86 before
//! FMA, a fused step is a library call: right, and slow.)
//!
//! Detection is CPUID and what the system permits, nothing else; that the tiles of AMX compute what they
//! should is checked where a backend is made (`amx::self_check`).

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// What every machine of this architecture has (NEON on aarch64).
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 with the byte products of AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// With VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// With VNNI and the bfloat16 products.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// With tiles too, for products of many rows.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

/// A tier that this machine has: holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

impl Isa {
    /// The tiers of this machine, the best one first.
    pub fn available() -> Vec<Isa> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 && avx512 && is_x86_feature_detected!("avx512bf16") {
                if amx_detected() && amx_permitted() {
                    tiers.push(Isa(Level::Amx));
                }
                tiers.push(Isa(Level::Avx512Bf16));
            }
            if avx2 && avx512 {
                tiers.push(Isa(Level::Avx512));
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                tiers.push(Isa(Level::AvxVnni));
            }
            if avx2 {
                tiers.push(Isa(Level::Avx2));
            }
        }
        tiers.push(Isa(Level::Scalar));
        tiers
    }

    /// The best tier that needs no asking for, or the one that `TALLOW_ISA` names.
    ///
    /// # Errors
    /// `Device` when it names none, or one that this machine has not.
    pub fn from_env() -> Result<Isa> {
        match std::env::var("TALLOW_ISA") {
            Ok(name) => Self::named(&name).map_err(|error| error.context("TALLOW_ISA")),
            Err(_) => Ok(Self::unasked(&Self::available())),
        }
    }

    /// The best of these tiers that is not opt-in.
    fn unasked(tiers: &[Isa]) -> Isa {
        tiers.iter().copied().find(|tier| !tier.is_opt_in()).unwrap_or(Isa(Level::Scalar))
    }

    /// Whether a machine that has the tier takes it only where `TALLOW_ISA` names it. AMX has passed its
    /// tests on a machine, but as long as none has timed it against the tier without, that is the default.
    pub fn is_opt_in(self) -> bool {
        self.has_amx()
    }

    /// A tier by name: `amx`, `avx512bf16`, `avx512`, `avxvnni`, `avx2` or `scalar`.
    ///
    /// # Errors
    /// `Device` when it is none of this machine's.
    pub fn named(name: &str) -> Result<Isa> {
        let tiers = Self::available();
        tiers.iter().copied().find(|tier| tier.name() == name).ok_or_else(|| {
            let names: Vec<_> = tiers.iter().map(|tier| tier.name()).collect();
            Error::device(format!(
                "{name:?} is not among this machine's instruction tiers: {}",
                names.join(", ")
            ))
        })
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Amx => "amx",
        }
    }

    pub(super) fn level(self) -> Level {
        self.0
    }

    /// Whether this is the tier with AMX.
    pub(super) fn has_amx(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Level::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

/// Intel SDM volume 1, 18.3: CPUID.(7,0).EDX bits 22 (bf16), 24 (tiles) and 25 (bytes); the operating system
/// says by XCR0 bits 17 and 18 that it saves tiles.
#[cfg(target_arch = "x86_64")]
fn amx_detected() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const STATE: u64 = 1 << 17 | 1 << 18;
    #[target_feature(enable = "xsave")]
    fn state() -> u64 {
        // SAFETY: this function has the instruction.
        unsafe { _xgetbv(0) }
    }
    if !is_x86_feature_detected!("xsave") || !is_x86_feature_detected!("avx512f") {
        return false;
    }
    // CPUID is a safe function in newer Rust, and was an unsafe one in 1.90.
    #[allow(unused_unsafe)]
    // SAFETY: CPUID is there where AVX is; XGETBV where `xsave` is, which the line above asks the system too.
    unsafe {
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES == TILES && state() & STATE == STATE
    }
}

/// Asks Linux for tiles, for all threads of the process, also later ones. It says no where it is older than
/// 5.16 or a thread's alternate signal stack is too small to save them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_permitted() -> bool {
    // Linux, Documentation/arch/x86/xstate.rst
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_permitted() -> bool {
    false
}

/// `tiered! { fn name<G: Bound>(a: A, b: B) = body; }` makes `name::<G>(isa, a, b)`, which runs the unsafe
/// `body::<tier, G>(a, b)` compiled for the tier. Its `body` may ask of its caller the tier's instructions
/// and nothing else; one that asks for more is `tiered! { fn name(..) = [unsafe] body; }`, and `name` asks
/// for that.
macro_rules! tiered {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident $(<$g:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?)
            = $([$safety:tt])? $body:ident;
    ) => {
        $(#[$doc])*
        $vis $($safety)? fn $name $(<$g: $bound>)? (isa: $crate::kernels::isa::Isa, $($arg: $ty),*) {
            use $crate::kernels::isa::Level;
            use $crate::kernels::simd::scalar::Scalar;
            #[cfg(target_arch = "x86_64")]
            use $crate::kernels::simd::{avx2::Avx2, avx512::Avx512};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx512bf16 $(<$g: $bound>)? ($($arg: $ty),*) {
                // SAFETY: this function has the instructions.
                unsafe { $body::<Avx512<true> $(, $g)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            fn avx512 $(<$g: $bound>)? ($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { $body::<Avx512<false> $(, $g)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
            fn avxvnni $(<$g: $bound>)? ($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { $body::<Avx2<true> $(, $g)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$g: $bound>)? ($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { $body::<Avx2<false> $(, $g)?>($($arg),*) }
            }
            // SAFETY: an `Isa` of a level exists only where the machine has its features; what else the body
            // needs is the caller's promise.
            unsafe {
                match isa.level() {
                    Level::Scalar => $body::<Scalar $(, $g)?>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => avx2 $(::<$g>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::AvxVnni => avxvnni $(::<$g>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => avx512 $(::<$g>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512Bf16 | Level::Amx => avx512bf16 $(::<$g>)? ($($arg),*),
                }
            }
        }
    };
}
pub(super) use tiered;

/// Rows that tiles of a product have, the largest first, on machines with AVX-512 and on others.
pub(super) struct Tiles {
    pub(super) avx512: &'static [usize],
    pub(super) avx2: &'static [usize],
}

impl Tiles {
    fn of(&self, isa: Isa) -> &'static [usize] {
        match isa.level() {
            Level::Scalar => &[1],
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::AvxVnni => self.avx2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => self.avx512,
        }
    }
}

/// Rows of the next tile: as many as the tier has registers for.
pub(super) fn tile_rows(isa: Isa, tiles: &Tiles, left: usize) -> usize {
    tiles.of(isa).iter().copied().find(|&size| size <= left).unwrap_or(1)
}

/// The same, of which the last may have more rows than are left: less than those of two tiles cost.
pub(super) fn next_tile(isa: Isa, tiles: &Tiles, left: usize) -> usize {
    let sizes = tiles.of(isa);
    sizes.iter().rev().copied().find(|&size| size >= left).unwrap_or(sizes[0])
}

/// `tiled! { [8, 1] [2, 1] fn name<G: Bound>(a: A) = body; }` makes `name::<G>(isa, rows, a)`, which runs
/// `body::<tier, G, rows>(a)` compiled for each tier and each of the numbers of rows, those of AVX-512 and
/// those of AVX2. (The others panic.) Not every tier has its own, as with `tiered!`, because every tile that
/// is compiled costs: there are a dozen layouts of weights.
macro_rules! tiled {
    (
        [$($wide:literal),*] [$($narrow:literal),*]
        $(#[$doc:meta])*
        $vis:vis fn $name:ident<$g:ident: $bound:path>($($arg:ident: $ty:ty),* $(,)?) = $body:ident;
    ) => {
        $(#[$doc])*
        #[inline]
        $vis unsafe fn $name<$g: $bound>(isa: $crate::kernels::isa::Isa, rows: usize, $($arg: $ty),*) {
            use $crate::kernels::isa::Level;
            use $crate::kernels::simd::scalar::Scalar;
            #[cfg(target_arch = "x86_64")]
            use $crate::kernels::simd::{avx2::Avx2, avx512::Avx512};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            unsafe fn avx512<$g: $bound, const M: usize>($($arg: $ty),*) {
                // SAFETY: this function has the instructions; the rest is the caller's promise.
                unsafe { $body::<Avx512<false>, $g, M>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
            unsafe fn avxvnni<$g: $bound, const M: usize>($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { $body::<Avx2<true>, $g, M>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2<$g: $bound, const M: usize>($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { $body::<Avx2<false>, $g, M>($($arg),*) }
            }
            // SAFETY: an `Isa` of a level exists only where the machine has its features; the rest is the
            // caller's.
            unsafe { tiled!(@call isa rows $body $g ($($arg),*) [$($wide),*] [$($narrow),*]) }
        }
    };
    (
        @call $isa:ident $rows:ident $body:ident $g:ident $args:tt
        [$($wide:literal),*] [$($narrow:literal),*]
    ) => {
        match ($isa.level(), $rows) {
            (Level::Scalar, 1) => $body::<Scalar, $g, 1>$args,
            $(
                #[cfg(target_arch = "x86_64")]
                (Level::Avx2, $narrow) => avx2::<$g, $narrow>$args,
                #[cfg(target_arch = "x86_64")]
                (Level::AvxVnni, $narrow) => avxvnni::<$g, $narrow>$args,
            )*
            $(
                #[cfg(target_arch = "x86_64")]
                (Level::Avx512 | Level::Avx512Bf16 | Level::Amx, $wide) => avx512::<$g, $wide>$args,
            )*
            _ => unreachable!("no tile of {} rows on {}", $rows, $isa.name()),
        }
    };
}
pub(super) use tiled;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_tier_is_had_only_by_its_name() {
        for tier in Isa::available() {
            assert_eq!(Isa::named(tier.name()).unwrap(), tier);
        }
        let error = Isa::named("avx9000").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.message().contains("scalar"), "{error}");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_tile_may_be_larger_than_what_is_left() {
        let (tiles, isa) = (Tiles { avx512: &[12, 8, 6, 4, 2, 1], avx2: &[2, 1] }, Isa(Level::Avx512));
        for (left, rows) in [(1, 1), (2, 2), (3, 4), (5, 6), (7, 8), (9, 12), (12, 12), (13, 12), (40, 12)] {
            assert_eq!(next_tile(isa, &tiles, left), rows, "{left}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn amx_is_taken_only_where_it_is_named() {
        use Level::{Amx, Avx2, Avx512, Avx512Bf16, Scalar};
        for (tiers, taken) in [
            (vec![Amx, Avx512Bf16, Avx512, Avx2, Scalar], Avx512Bf16),
            (vec![Avx512, Avx2, Scalar], Avx512),
            (vec![Scalar], Scalar),
        ] {
            let tiers: Vec<_> = tiers.into_iter().map(Isa).collect();
            assert_eq!(Isa::unasked(&tiers), Isa(taken), "{tiers:?}");
        }
        assert!(!Isa::unasked(&Isa::available()).is_opt_in());
    }
}
