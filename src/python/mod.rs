//! `tallow._core`: the one place that names pyo3.
//!
//! Rust gives mechanism here, `python/tallow` gives ergonomics. Classes are frozen newtypes; every call goes
//! through one door ([`door`]) that releases the GIL, looks for Ctrl-C every 20 ms, catches panics and turns
//! errors into exceptions by one table ([`errors`]).

mod adapter;
mod convert;
mod door;
mod engine;
mod errors;
mod generation;
mod load;
mod model;
mod sampler;
mod train;
mod waker;

use pyo3::prelude::*;
use pyo3::types::PyDict;

#[pymodule]
#[pyo3(name = "_core")]
fn core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::register(module)?;
    module.add_class::<model::PyModel>()?;
    module.add_class::<model::PyPrompt>()?;
    module.add_class::<engine::PyEngine>()?;
    module.add_class::<adapter::PyAdapter>()?;
    module.add_class::<generation::PyGeneration>()?;
    module.add_class::<sampler::PySampler>()?;
    module.add_class::<train::PyTraining>()?;
    module.add_class::<waker::PyWaker>()?;
    module.add_function(wrap_pyfunction!(features, module)?)?;
    module.add_function(wrap_pyfunction!(_tile_probe, module)?)?;
    module.add_function(wrap_pyfunction!(sampler::end_filters, module)?)?;
    module.add_function(wrap_pyfunction!(load::locate, module)?)?;
    module.add_function(wrap_pyfunction!(load::convert, module)?)?;
    module.add_function(wrap_pyfunction!(model::plain_messages, module)?)?;
    module.add_function(wrap_pyfunction!(load::anywhere, module)?)?;
    module.add_function(wrap_pyfunction!(load::cache_folder, module)?)?;
    module.add_function(wrap_pyfunction!(load::hub_cache_folder, module)?)?;
    module.add_function(wrap_pyfunction!(load::packed_files, module)?)?;
    module.add_function(wrap_pyfunction!(load::finish_packed, module)?)?;
    module.add_function(wrap_pyfunction!(load::offline_variable, module)?)?;
    module.add("SAMPLER_FIELDS", crate::sample::FIELDS.to_vec())?;
    module.add("CONVERT_TYPES", crate::convert::Kind::names().collect::<Vec<_>>())?;
    module.add("MAX_STOPS", crate::lm::MAX_STOPS)?;
    module.add("MAX_STOP_CHARS", crate::lm::MAX_STOP_CHARS)?;
    module.add("MAX_TOP_LOGPROBS", crate::engine::request::MAX_TOP_LOGPROBS)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("__doc__", "The native part of tallow.")?;
    Ok(())
}

/// For benchmarks: byte operations a second of the inner loop of products, of all threads at this moment.
#[pyfunction]
fn _tile_probe(py: Python<'_>, threads: usize, seconds: f64) -> PyResult<f64> {
    let time = std::time::Duration::try_from_secs_f64(seconds)
        .map_err(|error| pyo3::exceptions::PyValueError::new_err(format!("seconds: {error}")))?;
    door::detached(py, || crate::kernels::tile_rate(threads, time))
}

/// What this build can do, and what this machine lends it.
#[pyfunction]
fn features(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    use crate::kernels::Isa;
    let isa = Isa::from_env().map_err(|error| errors::to_python(py, &error))?.name();
    let opt_in = |isa: &Isa| isa.is_opt_in();
    let opt_in: Vec<_> = Isa::available().into_iter().filter(opt_in).map(Isa::name).collect();
    let dict = PyDict::new(py);
    dict.set_item("cuda", cfg!(feature = "cuda"))?;
    dict.set_item("metal", cfg!(feature = "metal"))?;
    dict.set_item("hub", cfg!(feature = "hub"))?;
    dict.set_item("isa", isa)?;
    dict.set_item("isa_opt_in", opt_in)?;
    dict.set_item("threads", crate::device::default_threads())?;
    Ok(dict)
}
