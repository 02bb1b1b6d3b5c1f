//! Generated message types: the Container Runtime Interface, the task service
//! and the launch plan. The sources, with their comments, are in `proto/`.

#![allow(
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic,
    rustdoc::all,
    reason = "generated"
)]

/// `google.protobuf`: Any and Timestamp.
pub mod google {
    pub mod protobuf {
        include!(concat!(env!("OUT_DIR"), "/google.protobuf.rs"));
    }
}

/// containerd's task service and its types.
pub mod containerd {
    pub mod task {
        pub mod v3 {
            include!(concat!(env!("OUT_DIR"), "/containerd.task.v3.rs"));
        }
    }
    pub mod types {
        include!(concat!(env!("OUT_DIR"), "/containerd.types.rs"));
    }
    pub mod v1 {
        pub mod types {
            include!(concat!(env!("OUT_DIR"), "/containerd.v1.types.rs"));
        }
    }
}

/// The launch plan, `proto/plan.proto`.
pub mod berth {
    pub mod plan {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/berth.plan.v1.rs"));
        }
    }
}

pub use berth::plan::v1 as plan;
pub use containerd::task::v3 as task;

/// The Container Runtime Interface, `proto/cri.proto`.
#[cfg(feature = "agent")]
pub mod cri {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
    /// The compiled descriptors, a serialized FileDescriptorSet.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.fds"));
}
