//! Compiles the C++ shim against libtorch's headers, and lets the binaries find the libtorch they were linked against
//! without LD_LIBRARY_PATH, which still wins where it is set.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    const SOURCES: [&str; 2] = ["src/shim/shim.cpp", "src/shim/autograd.cpp"];
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    let libtorch =
        std::env::var_os("LIBTORCH").expect("LIBTORCH names the folder of libtorch; `scripts/libtorch` lays it out");
    let libtorch = PathBuf::from(libtorch);
    let libtorch = libtorch.canonicalize().unwrap_or(libtorch);
    let version = std::fs::read_to_string(libtorch.join("build-version")).unwrap_or_default();
    println!("cargo:rerun-if-changed={}", libtorch.join("build-version").display());
    println!(
        "cargo:rustc-env=TEMPONAS_LIBTORCH_VERSION={}",
        version.split('+').next().unwrap_or_default().trim()
    );
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        // Some of libtorch's classes have one field more without it: it must be as libtorch was built.
        .define("NDEBUG", None)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .files(SOURCES)
        .compile("temponas_shim");
    println!("cargo:rustc-link-search=native={}/lib", libtorch.display());
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}/lib", libtorch.display());
}
