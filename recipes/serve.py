"""Serve a trained model over a corpus: OpenAI's chat completions, and a page with the passages beside each answer.

    python recipes/serve.py --evaluation path/to/evaluation

    python recipes/serve.py --model_name_or_path path/to/save/dir/model \\
        --embedding_model checkpoint/to/retriever/model \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index/dir/of/document

With --evaluation, the folder of an evaluation or of the test of a training run, its flags are the defaults. Questions
that wait together are answered together. Only this machine can connect, unless --host is an address of the network and
--token_name an environment variable with a token. SIGTERM and Ctrl-C finish the running answers.
"""

import os
import sys

from rqa import cli, data, distributed, generation, models, retrieval, serving
from rqa.errors import InputError


def main() -> None:
    """Open the index, load the model, serve."""
    args, generator, search = cli.parse_args(
        cli.ServeArgs(), cli.GeneratorArgs(), cli.RetrievalArgs(), base="evaluation"
    )
    search.require_retriever()
    cli.require(generator, "model_name_or_path")
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise InputError(f"expected one process, got {processes}. Launch with `python {sys.argv[0]} …`")
    access = serving.Access(args.host, args.token)
    feedback = serving.Feedback(args.feedback_path, citations=generator.citations)
    chat = open_chat(generator, search, args.max_batch_size)
    batcher = serving.Batcher(chat, batch_size=args.max_batch_size, max_queue=args.max_queue)
    app = serving.make_app(batcher, feedback, access, model=args.served_model_name, answer_timeout=args.answer_timeout)
    serving.serve(app, args.host, args.port, shutdown_timeout=args.shutdown_timeout)


def open_chat(generator: cli.GeneratorArgs, search: cli.RetrievalArgs, batch_size: int) -> "generation.Chat":
    """Load everything that an answer needs, and verify the index."""
    name = generator.model_name_or_path
    passages = data.open_passages(**search.corpus_options)
    accelerator = distributed.make_accelerator(bf16=generator.bf16, deepspeed=None)
    collator = models.load_collator(name, **generator.collator_options)
    attention = models.attention_for(accelerator, name, **generator.attention_options)
    retriever = retrieval.open_retriever(passages, device=accelerator.device, **search.retriever_options)
    model = models.load_generator(accelerator, name, attention=attention, **generator.load_options)
    generate = generation.Generator(accelerator, model, collator, batch_size, generator.generation_limit)
    k, history_turns = search.embedding_max_num_to_retrieve, search.query_history
    chat = generation.Chat(retriever, generate, k=k, history_turns=history_turns)
    chat.warm_up()
    retriever.verify()
    return chat


if __name__ == "__main__":
    cli.run_main(main)
