//! Generates the message types from `proto/`: protox parses, prost and tonic
//! write Rust. No protoc is needed. The CRI is generated for the agent only;
//! the task and plan messages are for both sides of the shim's socket.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let shim = protox::compile(["task.proto", "plan.proto"], ["proto"])?;
    prost_build::Config::new()
        .compile_well_known_types()
        .extern_path(".google.protobuf.Empty", "()")
        // One program, however many processes have it.
        .bytes([".berth.plan.v1.Process.seccomp"])
        .compile_fds(shim)?;

    #[cfg(feature = "agent")]
    {
        use prost::Message;
        let cri = protox::compile(["cri.proto"], ["proto"])?;
        let out = PathBuf::from(env::var("OUT_DIR")?);
        std::fs::write(out.join("cri.fds"), cri.encode_to_vec())?;
        tonic_prost_build::configure()
            .build_server(true)
            .build_client(true)
            // Verbose statuses show requests as JSON, with the interface's names.
            .type_attribute(".runtime.v1", "#[derive(serde::Serialize)]")
            .field_attribute(
                "ContainerConfig.CDI_devices",
                "#[serde(rename = \"CDI_devices\")]",
            )
            .field_attribute("Mount.uidMappings", "#[serde(rename = \"uidMappings\")]")
            .field_attribute("Mount.gidMappings", "#[serde(rename = \"gidMappings\")]")
            .compile_fds(cri)?;
    }
    #[cfg(not(feature = "agent"))]
    let _ = (env::var("OUT_DIR"), PathBuf::new());
    Ok(())
}
