"""Embed two folders of images and print, for each query, the gallery images nearest to it.
Usage: python examples/embed_and_search.py model.ckpt /data/queries /data/gallery --topk 5"""

import argparse

from inference import Embedder
from inference.searching.search import search_gallery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="written by train_ctl_model.py or train_base_model.py")
    parser.add_argument("queries", help="folder of images")
    parser.add_argument("gallery", help="folder of images")
    parser.add_argument("--topk", type=int, default=5, help="results for each query")
    args = parser.parse_args()

    embedder = Embedder.from_checkpoint(args.checkpoint)
    queries, query_paths = embedder.embed_folder(args.queries)  # [Q, D] and Q paths
    gallery, gallery_paths = embedder.embed_folder(args.gallery)  # [N, D] and N paths
    indices, distances = search_gallery(queries, gallery, metric="cosine", topk=args.topk)  # [Q, K] each

    for path, found, how_far in zip(query_paths, indices, distances, strict=True):
        print(path)
        for row, distance in zip(found, how_far, strict=True):
            print(f"    {distance:.4f}  {gallery_paths[row]}")


if __name__ == "__main__":
    main()
