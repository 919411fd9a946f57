//! Measuring blocks because someone asked for them, for no search.

use std::collections::BTreeSet;

use lut::{Lut, figure3_blocks};
use protocol::luts::{self as wire, BlockSet, ProfileReply, ProfileRequest};
use search_spaces::{Block, Space, UnetConfig, work};

use super::{
    SearchError,
    profiling::{self, Asker, Supply},
    submission::{self, invalid, short},
};
use crate::{
    app::App,
    samples, shipped,
    store::{jobs, luts::LutFilter},
};

/// Heights and widths of the paper's Figure 3, latent pixels.
pub const FIGURE_3_SIZES: [u64; 5] = [4, 8, 16, 32, 64];

/// The most blocks of a request.
const MOST_BLOCKS: usize = 256;

/// The most dimensions of a block.
const MOST_DIMENSIONS: usize = 16;

/// The largest size that is asked for: beyond it no device holds even the input.
const LARGEST_SIZE: u64 = 1024;

/// Queues jobs for what was asked for and the device's table lacks, the lightest blocks first. What does not fit into
/// a worker's memory becomes an entry that says so.
///
/// # Errors
/// What is wrong with the request, by field; or the store fails.
pub async fn measure(app: &App, device: &str, wish: &ProfileRequest) -> Result<ProfileReply, SearchError> {
    let now = app.clock.now();
    let (text, space) = space_of(&wish.space)?;
    let blocks = blocks_of(&wish.blocks, &space)?;
    let runtime = match &wish.runtime {
        Some(runtime) => runtime.clone(),
        None => submission::only_runtime(app, device, now).await?,
    };
    let filter = LutFilter {
        runtime: Some(&runtime),
        dtype: Some(profiling::dtype(&space).as_str()),
        operator: None,
    };
    let mut lut = Lut::new(device, samples::lut_runtime(&runtime), profiling::dtype(&space));
    for entry in app.store.lut_entries(device, &filter).await? {
        lut.insert(entry.key.block, entry.state);
    }
    let mut tx = app.store.begin().await?;
    let open = jobs::open_measurements(tx.connection(), device).await?;
    let waiting: BTreeSet<Block> = open
        .iter()
        .filter(|open| open.space == text)
        .flat_map(|open| open.blocks.iter().map(samples::lut_block))
        .collect();
    let asked = blocks.len();
    let (known, blocks): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| lut.state(block).is_some());
    let mut missing: Vec<Block> = blocks.into_iter().filter(|block| !waiting.contains(block)).collect();
    let macs = |block: &Block| work(block, profiling::dtype(&space)).map(|work| work.macs);
    missing.sort_by_key(|block| (macs(block), block.clone()));
    let (queued_blocks, heaviest) = (missing.len(), missing.last().and_then(macs));
    let supply = Supply::of(tx.connection(), &space, &runtime).await?;
    let supply = supply.map_err(|reason| invalid("space", reason))?;
    let asker = Asker {
        search: None,
        space: text,
        device,
        runtime: &runtime,
    };
    let (ready, without_graph) = supply.part(missing);
    let mut new = asker.profile_jobs(ready);
    new.extend(asker.export_jobs(without_graph, supply.precision()));
    let mut queued = Vec::new();
    for job in new {
        jobs::insert(&mut tx, &job, now).await?;
        queued.push(job.id);
    }
    tx.commit(now).await?;
    Ok(ProfileReply {
        jobs: queued,
        queued: queued_blocks as u64,
        known: known.len() as u64,
        waiting: (asked - known.len() - queued_blocks) as u64,
        heaviest_macs: heaviest,
    })
}

/// Text and content of the space that was named.
fn space_of(name: &str) -> Result<(&'static str, Space), SearchError> {
    let with_unet = |text: &&str| Space::parse(text).is_ok_and(|space| space.unet().is_some());
    match shipped::space(name).and_then(|text| Some((text, Space::parse(text).ok()?))) {
        Some((text, space)) if space.unet().is_some() => Ok((text, space)),
        _ => {
            let allowed: Vec<&str> = shipped::SPACES
                .iter()
                .filter(|(_, text)| with_unet(text))
                .map(|(name, _)| *name)
                .collect();
            let found = short(name);
            Err(invalid("space", format!("`{found}` is none of {}", allowed.join(", "))))
        }
    }
}

fn blocks_of(wish: &BlockSet, space: &Space) -> Result<BTreeSet<Block>, SearchError> {
    match wish {
        BlockSet::Space => Ok(space.blocks().into_iter().collect()),
        BlockSet::Figure3 { sizes } => figure3(sizes, space.unet()),
        BlockSet::List { blocks } => listed(blocks),
    }
}

fn figure3(sizes: &[u64], unet: Option<&UnetConfig>) -> Result<BTreeSet<Block>, SearchError> {
    let sizes = if sizes.is_empty() {
        FIGURE_3_SIZES.as_slice()
    } else {
        sizes
    };
    if let Some(wrong) = sizes.iter().find(|size| !(1..=LARGEST_SIZE).contains(*size)) {
        let message = format!("{wrong} is not from 1 to {LARGEST_SIZE}");
        return Err(invalid("blocks.sizes", message));
    }
    if sizes.len() * 6 > MOST_BLOCKS {
        let message = format!("has {} sizes; at most {} are allowed", sizes.len(), MOST_BLOCKS / 6);
        return Err(invalid("blocks.sizes", message));
    }
    let blocks = unet.map(|unet| figure3_blocks(unet, sizes)).unwrap_or_default();
    Ok(blocks.into_iter().map(|(_, _, block)| block).collect())
}

fn listed(blocks: &[wire::Block]) -> Result<BTreeSet<Block>, SearchError> {
    if !(1..=MOST_BLOCKS).contains(&blocks.len()) {
        let message = format!("has {}; allowed: 1 to {MOST_BLOCKS}", blocks.len());
        return Err(invalid("blocks.blocks", message));
    }
    for (index, block) in blocks.iter().enumerate() {
        let field = |name: &str| format!("blocks.blocks[{index}].{name}");
        if !(1..=100).contains(&block.operator.len()) {
            return Err(invalid(field("operator"), "must have 1 to 100 characters".to_owned()));
        }
        if block.shape.len() > MOST_DIMENSIONS {
            let message = format!("must have at most {MOST_DIMENSIONS} dimensions");
            return Err(invalid(field("shape"), message));
        }
    }
    Ok(blocks.iter().map(samples::lut_block).collect())
}
