//! Compiles `proto/runtime_v1.proto` with protox: no protoc is needed anywhere.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "proto/runtime_v1.proto";
    println!("cargo:rerun-if-changed={PROTO}");
    let files = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // An RPC that is not built yet answers UNIMPLEMENTED.
        .generate_default_stubs(true)
        // The derived Debug would print passwords and tokens into logs; see `lib.rs`.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_fds(files)?;
    Ok(())
}
