//! A large image, pulled and removed again. The registry has it in files that are
//! in the page cache, and what other servers wrote is on the disk before.

use e2e::Result;

use crate::{
    accounting::{forget_peak, peak},
    content::Images,
    kubelet::timed,
    rounds::{Figures, Samples, interleaved},
    rows::{self, Row},
    server::Server,
};

pub async fn measure(
    servers: &mut [&mut Server],
    images: &Images,
    rounds: usize,
    samples: &mut Samples,
) -> Result {
    let (gzip, zstd) = images.large().await?;
    interleaved("pull", servers, rounds, samples, async |server| {
        let mut figures = pull(server, &gzip, [rows::GZIP, rows::GZIP_CPU, rows::GZIP_PEAK]).await?;
        figures.extend(pull(server, &zstd, [rows::ZSTD, rows::ZSTD_CPU, rows::ZSTD_PEAK]).await?);
        Ok(figures)
    })
    .await
}

async fn pull(server: &mut Server, image: &str, rows: [Row; 3]) -> Result<Figures> {
    let client = server.kubelet()?.client;
    rustix::fs::sync();
    server.group.settle().await?;
    forget_peak(server.pid()?)?;
    let before = server.group.cpu()?;
    let (time, _) = timed(Box::pin(async { Ok(client.pull(image).await?) })).await?;
    server.group.settle().await?;
    let cpu = server.group.cpu()?.saturating_sub(before);
    let peak = peak(server.pid()?)? as f64 / f64::from(1 << 20);
    client.remove_image(image).await?;
    let [wall_row, cpu_row, peak_row] = rows;
    Ok(vec![
        (wall_row, time / 1000.0),
        (cpu_row, cpu.as_secs_f64()),
        (peak_row, peak),
    ])
}
