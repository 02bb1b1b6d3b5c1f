//! What the types of the configuration cannot say.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{Config, Metrics, Tracing, read::dotted};

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Metrics {
    /// The address, understood; None: metrics are off.
    pub fn place(&self) -> Result<Option<Place>, String> {
        let text = self.address.as_str();
        if text.is_empty() {
            return Ok(None);
        }
        if let Some(path) = text.strip_prefix("unix://").map(Path::new) {
            return if path.is_absolute() {
                Ok(Some(Place::Unix(path.into())))
            } else {
                Err(format!("{text:?} is not of the form unix:///ABSOLUTE/PATH"))
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Some(Place::Tcp(address))),
            Ok(_) => Err(format!(
                "{text:?} is not on loopback: metrics are served without a password; put a proxy that asks for one before them"
            )),
            Err(_) => Err(format!(
                "{text:?} is neither ADDRESS:PORT nor unix:///ABSOLUTE/PATH"
            )),
        }
    }
}

impl Tracing {
    fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, message: String| Err((key.to_owned(), message));
        let endpoint = self.endpoint.as_str();
        let uri = endpoint.parse::<http::Uri>().ok();
        let plain = uri.is_some_and(|uri| uri.scheme_str() == Some("http") && uri.port().is_some());
        if !endpoint.is_empty() && !plain {
            return wrong(
                "tracing.endpoint",
                format!(
                    "{endpoint:?} is not of the form http://HOST:PORT; have a collector on this node for TLS"
                ),
            );
        }
        if self.sampling_rate_per_million > 1_000_000 {
            return wrong(
                "tracing.sampling_rate_per_million",
                "is more than a million".into(),
            );
        }
        Ok(())
    }
}

impl Config {
    /// What types cannot say: the key that is wrong, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, message: String| Err((key.to_owned(), message));
        match self.cgroup.driver.as_str() {
            "auto" | "cgroupfs" | "systemd" => {}
            other => {
                return wrong(
                    "cgroup.driver",
                    format!("{other:?} is none of \"auto\", \"cgroupfs\" and \"systemd\""),
                );
            }
        }
        if self.network.bridge.len() > 15 {
            return wrong(
                "network.bridge",
                format!("{:?} is longer than 15 bytes", self.network.bridge),
            );
        }
        for (key, is_zero) in [
            ("network.cni_timeout", self.network.cni_timeout == 0),
            ("network.cni_max_plugins", self.network.cni_max_plugins == 0),
        ] {
            if is_zero {
                return wrong(key, "must be at least 1".into());
            }
        }
        if let Err(message) = crate::telemetry::log::filter(&self.log.level) {
            return wrong("log.level", message);
        }
        if let Err(message) = self.metrics.place() {
            return wrong("metrics.address", message);
        }
        self.tracing.check()?;
        if !matches!(self.log.format.as_str(), "text" | "json") {
            return wrong(
                "log.format",
                format!("{:?} is neither \"text\" nor \"json\"", self.log.format),
            );
        }
        for (name, handler) in &self.runtimes {
            if let Err((key, message)) = handler.check(name) {
                return wrong(&format!("{}.{key}", dotted("runtimes", name)), message);
            }
        }
        if self.runtime.default != "berth" && !self.runtimes.contains_key(&self.runtime.default) {
            return wrong(
                "runtime.default",
                format!("there is no [runtimes.{}]", self.runtime.default),
            );
        }
        if self.streaming.tls_cert.as_os_str().is_empty() != self.streaming.tls_key.as_os_str().is_empty() {
            return wrong(
                "streaming.tls_cert",
                "tls_cert and tls_key are needed both, or neither".into(),
            );
        }
        if self.streaming.idle_timeout == 0 || self.streaming.creation_timeout == 0 {
            return wrong(
                "streaming.idle_timeout",
                "idle_timeout and creation_timeout must be at least 1".into(),
            );
        }
        if let Some(folder) = self
            .runtime
            .cdi_spec_dirs
            .iter()
            .find(|folder| !folder.is_absolute())
        {
            return wrong(
                "runtime.cdi_spec_dirs",
                format!("{} is not an absolute path", folder.display()),
            );
        }
        if self.image.max_concurrent_layers == 0 {
            return wrong("image.max_concurrent_layers", "must be at least 1".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_metrics() {
        let place = |address: &str| {
            Metrics {
                address: address.into(),
            }
            .place()
        };
        assert_eq!(place(""), Ok(None));
        assert_eq!(
            place("unix:///run/m.sock"),
            Ok(Some(Place::Unix("/run/m.sock".into())))
        );
        for tcp in ["127.0.0.1:9100", "[::1]:0"] {
            assert_eq!(place(tcp), Ok(Some(Place::Tcp(tcp.parse().unwrap()))));
        }
        for wrong in ["0.0.0.0:9100", "unix://m.sock", "9100", "localhost:9100"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn collectors_and_rates() {
        let check = |endpoint: &str, rate| {
            let tracing = Tracing {
                endpoint: endpoint.into(),
                sampling_rate_per_million: rate,
            };
            tracing.check().map_err(|(key, _)| key)
        };
        for right in ["", "http://127.0.0.1:4317", "http://collector:4317"] {
            assert_eq!(check(right, 1_000_000), Ok(()), "{right}");
        }
        for wrong in ["127.0.0.1:4317", "https://127.0.0.1:4317", "http://"] {
            assert_eq!(check(wrong, 0), Err("tracing.endpoint".into()), "{wrong}");
        }
        let rate = check("", 1_000_001);
        assert_eq!(rate, Err("tracing.sampling_rate_per_million".into()));
    }
}
