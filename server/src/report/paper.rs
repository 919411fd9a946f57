//! What the paper reports: an iPhone 16 Pro Max, a model of 0.6B parameters, clips of 51 frames at 512×512.

/// Whose figures these are.
pub(super) const SCALE: &str = "iPhone 16 Pro Max, 0.6B parameters, 51 frames of 512×512 pixels";

/// The text encoder (Appendix F), milliseconds.
pub(super) const TEXT_MS: f64 = 6.0;

/// The two parts of the UNet (Figure A5), milliseconds.
pub(super) const PARTS_MS: [f64; 2] = [338.68, 681.41];

/// Steps of a sample (Appendix F).
pub(super) const STEPS: usize = 4;

/// The decoder (Appendix F), milliseconds.
pub(super) const DECODER_MS: f64 = 500.0;

/// Table A1: latency in seconds, PSNR, SSIM, LPIPS, FloLPIPS.
pub(super) const TABLE_A1: [[&str; 6]; 2] = [
    ["Open-Sora", "27.2", "29.07", "0.8066", "0.1336", "0.1303"],
    ["the paper's", "0.5", "29.21", "0.8240", "0.0949", "0.0915"],
];

/// Headings of Table A1.
pub(super) const TABLE_A1_HEADS: [&str; 6] = ["VAE", "Latency (s)", "PSNR", "SSIM", "LPIPS", "FloLPIPS"];

/// Table 5, in percent.
pub(super) const TABLE_5: [[&str; 7]; 3] = [
    ["1", "11.39", "79.24", "52.85", "74.43", "62.70", "72.09"],
    ["2", "30.28", "88.97", "59.74", "80.08", "69.28", "77.92"],
    ["4", "51.11", "92.22", "62.19", "83.47", "71.84", "81.14"],
];

/// Headings of Table 5: dynamic degree, object class, aesthetic quality, and the three scores.
pub(super) const TABLE_5_HEADS: [&str; 7] = ["Steps", "DD", "OC", "AQ", "Quality", "Semantic", "Total"];
