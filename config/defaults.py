"""Every configuration key, with its default. The comment above a key is its documentation; ``--help`` prints it."""

from yacs.config import CfgNode

# Keys that older configuration files contain but nothing reads; their comments say "accepted, unused".
UNUSED_KEYS = (
    "SOLVER.CLUSTER_MARGIN",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.WEIGHT",
)

# Keys with only one allowed value: config/validate.py checks it, and nothing else reads them.
CHECKED_ONLY_KEYS = ("SOLVER.USE_AUTOMATIC_OPTIM",)

_C = CfgNode()

# The network.
_C.MODEL = CfgNode()
# Backbone: resnet18, resnet34, resnet50, resnet101, resnet152, resnet50_ibn_a, resnet101_ibn_a or resnet152_ibn_a;
# osnet_x1_0, osnet_x0_75, osnet_x0_5, osnet_x0_25, osnet_ibn_x1_0, osnet_ain_x1_0, osnet_ain_x0_75, osnet_ain_x0_5 or
# osnet_ain_x0_25; timm:<name> or torchvision:<name>, a network of these packages; or a network of your own, as
# package.module:name of the function or class that builds it.
_C.MODEL.NAME = "resnet50"
# Width of what the backbone gives: 512 for resnet18, resnet34 and every OSNet, 2048 for the other ResNets; 0 takes the
# network's own.
_C.MODEL.BACKBONE_EMB_SIZE = 2048
# How a feature map or tokens become one vector: avg, max, gem (generalised mean with a learned exponent), avgmax (half
# the sum of average and maximum), or token (the class token of a transformer).
_C.MODEL.POOLING = "avg"
# Reduce the pooled vector to this dimension by a linear layer, before losses and BN neck; 0 leaves it as it is.
_C.MODEL.EMBED_DIM = 0
# What validation, inference and export take as the embedding: what comes after the BN neck, or what goes into it
# (before). A checkpoint's value is used where nobody sets another.
_C.MODEL.NECK_FEAT = "after"
# Stride of the last stage of a ResNet: 1 keeps its feature map as large as that of the stage before, 2 halves it.
_C.MODEL.LAST_STRIDE = 1
# Put a ReLU after the first batch norm of resnet18 to resnet152, as torchvision, fast-reid and others do: for weights
# of theirs that are to give the features they were trained for. The original has none; the IBN-a networks always have
# it.
_C.MODEL.STEM_RELU = False
# timm: and torchvision: networks: the rate at which the last block is skipped in training, which falls to 0 towards the
# first; 0 to below 1.
_C.MODEL.DROP_PATH = 0.0
# Vision transformers of timm: pixels between two patches; below the size of a patch they overlap, as 12 of 16 do. 0 is
# the size of a patch.
_C.MODEL.PATCH_STRIDE = 0
# Start the backbone from the weights in MODEL.PRETRAIN_PATH (True), or from random weights (False).
_C.MODEL.PRETRAINED = True
# With PRETRAINED: share of tensors that must fit by name and shape, 0 to 1, of all that the backbone or its counterpart
# in the file has. 1 refuses every file that does not fit as a whole; below that, layers that do not fit are left out
# and start from random weights.
_C.MODEL.PRETRAIN_MIN_SHARE = 1.0
# With PRETRAINED and a checkpoint of this project in PRETRAIN_PATH: take over its BN neck too, and, if it has as many
# identities as the training set, its classifier and class centres. False takes the backbone alone.
_C.MODEL.PRETRAIN_HEAD = False
# A weights file. For a fresh training: ImageNet weights (.pth, .safetensors), a checkpoint of this project, or one of
# another code base. With MODEL.RESUME_TRAINING: a checkpoint of this project (.ckpt or .pth). With TEST.ONLY_TEST or in
# inference: such a checkpoint, or weights of the network MODEL.NAME, whose pooled features are then the embeddings.
# Empty, for a fresh training of a timm: or torchvision: network: the weights that these packages download.
# With MODEL.RESUME_TRAINING, "auto" takes the newest checkpoint that this script wrote below OUTPUT_DIR, or starts a
# fresh training if there is none; "auto:FILE" starts that training from the ImageNet weights in FILE.
_C.MODEL.PRETRAIN_PATH = ""
# Validation: rank the centroids of the gallery identities (True), or single gallery images (False). The test pass after
# training uses the opposite. In inference: average the embeddings of each identity.
_C.MODEL.USE_CENTROIDS = False
# With USE_CENTROIDS: leave images of the query's own camera out of the centroids. False for data without cameras.
_C.MODEL.KEEP_CAMID_CENTROIDS = True
# Store images and feature maps with the channel as the innermost axis, which makes convolutions faster.
_C.MODEL.CHANNELS_LAST = True
# Compile the backbone for training with torch.compile. The first steps take minutes; needs a C++ compiler.
_C.MODEL.COMPILE = False
# Recompute each block of the backbone in the backward pass instead of storing its activations: less memory, more time.
_C.MODEL.GRAD_CHECKPOINT = False
# Parameters that are not trained, for good or in the first SOLVER.FREEZE_EPOCHS epochs: patterns of their names in the
# model, such as "backbone.base.layer1.*" or "backbone.base.conv1.weight". Parts of the network of which all is frozen
# compute as in validation: the running statistics of their BN stay.
_C.MODEL.FREEZE_AT = []
# Continue from the checkpoint MODEL.PRETRAIN_PATH: weights, optimisers, schedule and epoch.
_C.MODEL.RESUME_TRAINING = False

# Image size and augmentation. Sizes, RESIZE, means and standard deviations that nobody sets are those of the checkpoint
# that a run tests, continues or embeds with.
_C.INPUT = CfgNode()
# Height and width of a training image, in pixels.
_C.INPUT.SIZE_TRAIN = [256, 128]
# Height and width of a validation, test or inference image, in pixels.
_C.INPUT.SIZE_TEST = [256, 128]
# How an image of another shape is brought to that size, everywhere: stretch, or pad: keep its aspect ratio, as large as
# fits, in the middle, between borders of the colour PIXEL_MEAN.
_C.INPUT.RESIZE = "stretch"
# Probability of a horizontal flip in training, 0 to 1.
_C.INPUT.PROB = 0.5
# Probability of erasing a random rectangle in training, 0 to 1.
_C.INPUT.RE_PROB = 0.5
# What fills the rectangle: mean (the numbers PIXEL_MEAN, in the normalised image) or pixel (noise: for each pixel and
# channel, from a standard normal distribution).
_C.INPUT.RE_MODE = "mean"
# Least and greatest share of the image that the rectangle covers, 0 to 1.
_C.INPUT.RE_AREA = [0.02, 0.4]
# Colour jitter in training: how far brightness, contrast and saturation may change (0.2: factors 0.8 to 1.2), and by
# how much of the colour circle the hue may turn, 0 to 0.5. Empty: none. Colours change before the flip and the border.
_C.INPUT.COLOR_JITTER = []
# Probability of that jitter, 0 to 1.
_C.INPUT.COLOR_JITTER_PROB = 1.0
# Probability of turning a training image grey, 0 to 1.
_C.INPUT.GRAY_PROB = 0.0
# RandAugment (Cubuk et al. 2020) in training, before the colour jitter: number of operations, 1 or more, and their
# magnitude, 0 to 30. Empty: none.
_C.INPUT.RAND_AUGMENT = []
# Mean of each channel (red, green, blue; values 0 to 1), subtracted from every image; also fills erased rectangles.
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
# Standard deviation of each channel, above 0; divides every image.
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
# Black border added on each side before the random crop in training, in pixels, 0 or more.
_C.INPUT.PADDING = 10

# Turn images upright as their EXIF data says, everywhere (True), or take pixels as they are stored (False). Inference
# takes it from the checkpoint, as it does sizes and scaling.
_C.INPUT.EXIF_ORIENTATION = True
# Decode JPEG images that are at least twice as high and as wide as the network's input at 1/2, 1/4 or 1/8 of their
# size, no smaller than that input, which is much faster (True). Pixels then differ by a few grey levels from those of
# the whole image (False). Inference takes it from the checkpoint.
_C.INPUT.DRAFT_DECODING = False

# The data set.
_C.DATASETS = CfgNode()
# Name of the data set: market1501, dukemtmcreid, occluded_duke, msmt17_v1, msmt17_v2, cuhk03np_labeled,
# cuhk03np_detected, veri776, vehicleid_800, vehicleid_1600, vehicleid_2400, df1 or street2shop; csv or folder for data
# of your own, or package.module:Class for a class of your own. Several names joined by "+" train on the identities of
# all and test on the first.
_C.DATASETS.NAMES = "market1501"
# Data sets to test on, such as "market1501+dukemtmcreid": after the training, or with TEST.ONLY_TEST in place of
# DATASETS.NAMES, each is tested by itself, with a folder and lines of its own, and a cross-domain matrix ends the run.
# Validations, and so the best checkpoint, remain those of DATASETS.NAMES. Empty: tests on DATASETS.NAMES as well.
_C.DATASETS.TESTS = ""
# Train on the query and gallery images of DATASETS.NAMES as well (torchreid's combineall), for a network that is to be
# used rather than compared: a test on these data sets then measures images that were trained on.
_C.DATASETS.COMBINEALL = False
# Folder that holds the data set's own folder (such as market1501), or its train, query and gallery folders (df1,
# street2shop, folder). csv: the folder that relative paths start from; if left at the default, or empty, that of the
# CSV file.
# In inference: a folder of images, or one image. In this and every other path, ~ and $VARIABLES are written out.
_C.DATASETS.ROOT_DIR = "/home/data"
# df1 and street2shop: the COCO file of the training set. The query and gallery files lie beside it; their names have
# "query" and "gallery" in place of "train".
_C.DATASETS.JSON_TRAIN_PATH = ""
# csv: a CSV file, or a Parquet file (.parquet, .pq), with the columns path, pid, split (train, query or gallery) and,
# optionally, camid.
_C.DATASETS.CSV_PATH = ""
# folder: what names the camera of an image. name: _c<number> in its file name; images of an identity may then lie in
# deeper folders. folder: the folder below that of the identity, whatever its name.
_C.DATASETS.CAMERA_FROM = "name"
# If an image cannot be read: stop with an error that names it, or skip it with one warning per file. In training,
# another image of the identity takes its place; validation leaves it out and reports how many were left out.
_C.DATASETS.ON_ERROR = "stop"

# Batches.
_C.DATALOADER = CfgNode()
# Worker processes that load images for each training process, at most the number of CPU cores divided by the training
# processes on this machine: more are not started. 0 loads in the training process; -1 takes that largest number.
# create_embeddings.py and get_similar.py read images in as many threads; 6, the default, and -1 let them choose.
# Results do not depend on it.
_C.DATALOADER.NUM_WORKERS = 6
# How training batches are drawn: random_identity (identities, then images of each).
_C.DATALOADER.SAMPLER = "random_identity"
# Images of each identity in a training batch (K), 2 or more.
_C.DATALOADER.NUM_INSTANCE = 4
# Drop a last training batch that has fewer than SOLVER.IMS_PER_BATCH identities. For samplers of your own:
# random_identity draws whole batches only.
_C.DATALOADER.DROP_LAST = True
# If an identity has fewer than NUM_INSTANCE images left in an epoch: draw some again (True), or fill the batch with
# blank images that the losses ignore (False).
_C.DATALOADER.USE_RESAMPLING = True
# Cache decoded and resized images, so that each file is decoded only once: none, ram (shared by all processes of this
# machine, gone when they end) or disk (kept in CACHE_DIR for later runs). The pixels are the same as without a cache.
_C.DATALOADER.CACHE = "none"
# Size of that cache in gigabytes (10^9 bytes), 0 or more; an image takes 3 x height x width bytes. Images that do not
# fit are decoded each time.
_C.DATALOADER.CACHE_GB = 8.0
# Folder of the disk cache. Empty: centroids-reid in XDG_CACHE_HOME, or in ~/.cache.
_C.DATALOADER.CACHE_DIR = ""

# Losses, optimisation and the training schedule.
_C.SOLVER = CfgNode()
# Optimiser of everything but the class centres: Adam, AdamW (decay apart from the gradient) or SGD.
_C.SOLVER.OPTIMIZER_NAME = "Adam"
# Length of the training, in epochs, 1 or more.
_C.SOLVER.MAX_EPOCHS = 120
# Learning rate after the warm-up, 0 or more.
_C.SOLVER.BASE_LR = 1e-4
# Learning rate at the end of cosine_annealing, 0 or more.
_C.SOLVER.MIN_LR = 0.0
# Momentum of SGD, 0 to 1; the other optimisers do not read it.
_C.SOLVER.MOMENTUM = 0.9
# Margin of the triplet losses, 0 or more; None uses the soft margin, as SOFT_MARGIN does.
_C.SOLVER.MARGIN = 0.5
# Triplet losses between images and between images and centroids: the soft margin, log(1 + exp(positive - negative)), in
# place of MARGIN.
_C.SOLVER.SOFT_MARGIN = False
# Distance between embeddings: euclidean or cosine. Rankings with euclidean use its square.
_C.SOLVER.DISTANCE_FUNC = "euclidean"
# Accepted, unused.
_C.SOLVER.CLUSTER_MARGIN = 0.3
# Learning rate of the class centres (SGD), 0 or more.
_C.SOLVER.CENTER_LR = 0.5
# Weight of the centre loss, 0 or more.
_C.SOLVER.CENTER_LOSS_WEIGHT = 0.0005
# Weight decay of the optimiser, 0 or more: added to the gradient (L2), with AdamW to the step.
_C.SOLVER.WEIGHT_DECAY = 0.0005
# Accepted, unused.
_C.SOLVER.WEIGHT_DECAY_BIAS = 0.0005
# What the rate of biases is multiplied by, above 0. Factors of a parameter that has several are multiplied.
_C.SOLVER.BIAS_LR_FACTOR = 1.0
# What the weight decay of biases is multiplied by, 0 or more.
_C.SOLVER.BIAS_DECAY_FACTOR = 1.0
# What the rate of the head is multiplied by, above 0. The head is all but the backbone and the class centres: BN neck,
# classifier, parameters of extra losses.
_C.SOLVER.HEAD_LR_FACTOR = 1.0
# What the rate of the backbone is multiplied by for each block from the head to the layer, above 0: once for the last
# block, twice for the one before. For networks that tell the order of their layers: those of this project, those of
# timm (not of torchvision), and those of your own that have a method layer_groups().
_C.SOLVER.LAYER_DECAY = 1.0
# No weight decay on biases, on norm layers and other parameters of one dimension, and on those that a network names in
# no_weight_decay(), such as tokens and position embeddings (True), or the same for all (False).
_C.SOLVER.NO_DECAY = False
# Schedule of the learning rate: multistep_lr (times GAMMA after each of LR_STEPS) or cosine_annealing (half a cosine
# wave from BASE_LR down to MIN_LR over MAX_EPOCHS).
_C.SOLVER.LR_SCHEDULER_NAME = "multistep_lr"
# Factor of multistep_lr, above 0.
_C.SOLVER.GAMMA = 0.1
# Epochs after which multistep_lr lowers the rate, ascending.
_C.SOLVER.LR_STEPS = (40, 70)
# Raise the rate linearly over the first WARMUP_EPOCHS epochs, or over the first WARMUP_STEPS steps.
_C.SOLVER.USE_WARMUP_LR = True
# Length of the warm-up, in epochs, 0 or more.
_C.SOLVER.WARMUP_EPOCHS = 10
# Length of the warm-up, in steps of the optimiser; 0 counts in epochs.
_C.SOLVER.WARMUP_STEPS = 0
# Train all that MODEL.FREEZE_AT does not freeze from the start, and the rest from this epoch on: 0 freezes it for good.
# With an empty FREEZE_AT, the backbone is what is frozen in these first epochs, and 0 freezes nothing.
_C.SOLVER.FREEZE_EPOCHS = 0
# Validation metric that picks the best checkpoint: mAP, Top-1, Top-5, Top-10, Top-20 or Top-50.
_C.SOLVER.MONITOR_METRIC_NAME = "mAP"
# The best checkpoint has the highest (max) or the lowest (min) value of that metric.
_C.SOLVER.MONITOR_METRIC_MODE = "max"
# Accepted, unused.
_C.SOLVER.CHECKPOINT_PERIOD = 50
# Epochs from one validation to the next, 1 or more.
_C.SOLVER.EVAL_PERIOD = 5
# Identities (P) in a training batch of one process, that is, of one device; 1 or more. The batch holds P times
# DATALOADER.NUM_INSTANCE images; with several processes, each has a batch of that size.
_C.SOLVER.IMS_PER_BATCH = 64
# How several devices or machines train together: ddp, ddp_spawn, or ddp_cpu (ddp on the CPU).
_C.SOLVER.DIST_BACKEND = "ddp"
# With several processes: the triplet losses, between images and between images and centroids, take positives and
# negatives from the batches of all processes (True), or only from their own (False). The other losses always use their
# own batch.
_C.SOLVER.GATHER_NEGATIVES = False
# Share of the target that the classification loss spreads over all identities, 0 to 1; 0 is plain cross-entropy.
_C.SOLVER.LABEL_SMOOTHING = 0.1
# Batches whose gradients make one step of the optimisers, 1 or more: the step is that of the mean of their losses, and
# each batch has its own batch-norm statistics. What is left at the end of an epoch makes a step of its own.
_C.SOLVER.ACCUMULATE = 1
# Largest L2 norm of all gradients of the network in a step, those of the class centres not counted: longer ones are
# scaled down to it. 0 leaves them as they are.
_C.SOLVER.CLIP_GRAD_NORM = 0.0
# Keep an exponential moving average of the weights and batch-norm statistics, with this decay for each step of the
# optimiser, 0 to below 1, such as 0.999: validations, tests and everything that loads a checkpoint use the average,
# while the training goes on with the weights themselves. 0 keeps none.
_C.SOLVER.EMA_DECAY = 0.0
# Weight of the classification loss (cross-entropy with label smoothing), 0 or more.
_C.SOLVER.QUERY_XENT_WEIGHT = 1.0
# Weight of the triplet loss between images, 0 or more.
_C.SOLVER.QUERY_CONTRASTIVE_WEIGHT = 1.0
# Weight of the triplet loss between images and centroids, 0 or more.
_C.SOLVER.CENTROID_CONTRASTIVE_WEIGHT = 1.0
# False only: the training steps call their two optimisers themselves.
_C.SOLVER.USE_AUTOMATIC_OPTIM = False

# Losses that are added to those of the model.
_C.LOSSES = CfgNode()
# Names of losses. Of the package pytorch-metric-learning (extra "losses"): arcface, circle, contrastive, cosface,
# multi_similarity, ntxent, proxy_anchor, proxy_nca, subcenter_arcface, supcon, or pml:Class for any other of its
# classes. Of your own: registered by a program (losses.extra.register_loss), or package.module:name of the class or
# function that builds one. Each is computed from the features and labels of the batch and logged under its own name.
_C.LOSSES.EXTRA = []
# Their arguments, a dictionary for each in the same order, such as [{m: 0.25, gamma: 128}, {}] in a file and
# "[{'m': 0.25, 'gamma': 128}, {}]" on the command line; empty: none for any. The number of identities and the size of
# the embedding are passed on their own.
_C.LOSSES.EXTRA_ARGS = []
# Their weights, 0 or more, in the same order; empty: 1 for each.
_C.LOSSES.EXTRA_WEIGHTS = []

# Validation and test.
_C.TEST = CfgNode()
# Images in a validation, test or inference batch, 1 or more.
_C.TEST.IMS_PER_BATCH = 128
# Accepted, unused.
_C.TEST.WEIGHT = ""
# Scale embeddings to unit length before distances are computed.
_C.TEST.FEAT_NORM = True
# In validation, test, inference and exported networks: take as the embedding of an image the mean of its embedding and
# that of its mirror image, before any scaling to unit length; twice the time. Tests and inference take it from the
# checkpoint, as they do image sizes.
_C.TEST.FLIP = False
# Test the checkpoint MODEL.PRETRAIN_PATH and train nothing.
_C.TEST.ONLY_TEST = False
# Data without cameras: leave a query's own image (the same file, or a file of the same content) out of its ranking when
# the gallery holds it (drop), or count it as a match (keep). Data with cameras has the same-camera filter instead.
_C.TEST.SELF_MATCH = "drop"
# Evaluations of a data set whose protocol draws its gallery anew for each, 1 or more: VehicleID, and data sets of your
# own with draw_gallery. Their mean counts, and the spread stands beside it; 1 takes the first draw alone.
_C.TEST.DRAWS = 10
# Validate once before the first epoch, for a number to compare with; it is logged at step -1.
_C.TEST.BEFORE_TRAINING = False
# In test passes, write to OUTPUT_DIR/visrank a strip for each query (a PNG of the query and its ranked results), and a
# page with curves, cameras, a map of the embeddings and the ranked lists: yes or no.
_C.TEST.VISUALIZE = "no"
# Results in a strip and in a list of the page, 1 or more.
_C.TEST.VISUALIZE_TOPK = 10
# Largest number of strips and of lists with results, 0 or more; queries with the lowest average precision come first.
_C.TEST.VISUALIZE_MAX_NUMBER = 1000000
# Of so many of the worst queries, draw heat maps to OUTPUT_DIR/visrank/heatmaps: the places in the query and in its
# first result that make them similar, by the feature map of a CNN, or where the attention of a transformer of timm
# goes. 0 for none.
_C.TEST.HEATMAPS = 0
# Re-rank by k-reciprocal neighbours (Zhong et al. 2017) before computing the metrics. This uses the other
# queries: say so when you report such numbers.
_C.TEST.RERANK = False
# Re-ranking: nearest neighbours among which reciprocal ones are sought, 1 or more.
_C.TEST.RERANK_K1 = 20
# Re-ranking: neighbours whose encodings are averaged, 1 or more.
_C.TEST.RERANK_K2 = 6
# Re-ranking: share of the original distance in the final one, 0 to 1.
_C.TEST.RERANK_LAMBDA = 0.3
# Alpha query expansion: average each query with this many of its nearest gallery images before ranking; 0 for none.
_C.TEST.QUERY_EXPANSION = 0

# The galleries that create_embeddings.py writes.
_C.GALLERY = CfgNode()
# Numbers in embeddings.npy: float32 or float16, which takes half the space and can change the order of results that are
# nearly as far; the recall that this costs is measured and printed.
_C.GALLERY.DTYPE = "float32"
# Rows in a file, 1 or more. A gallery that has more is kept in several: embeddings-00000.npy, embeddings-00001.npy, ...
_C.GALLERY.ROWS_PER_FILE = 1_000_000

# The Lightning Trainer.
_C.TRAINER = CfgNode()
# Where to compute: auto, cpu, gpu or mps.
_C.TRAINER.ACCELERATOR = "auto"
# Number of machines that train together, 1 or more; each runs one process for every entry of GPU_IDS.
_C.TRAINER.NUM_NODES = 1
# Arithmetic, as Lightning names it, such as 32-true, 16-mixed, bf16-mixed. Empty: USE_MIXED_PRECISION decides.
_C.TRAINER.PRECISION = ""
# CUDA: multiply float32 matrices as TF32 and let cuDNN pick the fastest convolutions. Faster, but numbers change.
_C.TRAINER.FAST_MATH = False
# With several processes on CUDA: compute the statistics of batch norm over the batches of all processes (True), or for
# each process over its own batch (False).
_C.TRAINER.SYNC_BATCHNORM = False
# Profile the run: simple (seconds spent in each part of the training) or pytorch (each operation, with a trace to open
# in a browser); the results go to the folder "profile" of the output. Empty: no profiling.
_C.TRAINER.PROFILER = ""
# Show a progress bar.
_C.TRAINER.PROGRESS_BAR = True

# Experiment tracking. TensorBoard files are always written.
_C.LOGGING = CfgNode()
# Steps from one update of the progress bar to the next, 1 or more. Training waits for an accelerator only then.
_C.LOGGING.EVERY_N_STEPS = 10
# Log to MLflow as well.
_C.LOGGING.MLFLOW = True
# MLflow server or database, such as http://localhost:5000. Empty: the environment variable MLFLOW_TRACKING_URI, else
# the file mlflow.db (SQLite) in the current folder.
_C.LOGGING.MLFLOW_URI = ""
# What to do when TensorBoard or MLflow cannot record a run at its start, such as a server that is down or a folder that
# cannot be written to: "continue" says so in one line and trains; "stop" ends with an error, and for that contacts
# MLflow before the training rather than after the first epoch. Later failures never stop a training.
_C.LOGGING.ON_ERROR = "continue"

# Indices of the CUDA devices to use. [] computes on the CPU, as does a machine without CUDA.
_C.GPU_IDS = [0]
# Folder of logs and checkpoints. Every run sets it: to OUTPUT_DIR, or to logs/{DATASETS.NAMES} if that is empty.
_C.LOG_DIR = "logs"
# Compute in 16-bit floats where that is safe. CUDA only; elsewhere 32-bit floats are used.
_C.USE_MIXED_PRECISION = True
# Folder for everything that a run writes. Empty: logs/{DATASETS.NAMES}.
_C.OUTPUT_DIR = ""
# Seed the runs so that they can be repeated: run i has the seed REPRODUCIBLE_SEED + i. Operations take their
# deterministic forms, which can be slower on CUDA; those that have none are named in a warning.
_C.REPRODUCIBLE = False
# Number of runs, one after the other, seeded or not, 1 or more.
_C.REPRODUCIBLE_NUM_RUNS = 3
# Seed of the first run, 0 to 4294967295.
_C.REPRODUCIBLE_SEED = 0
