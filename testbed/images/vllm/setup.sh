#!/bin/sh
set -eu
# For pictures and sound. They don't go with this build of torch, and vLLM starts without them.
rm -rf /opt/vllm/torchvision* /opt/vllm/torchaudio* /opt/vllm/torchcodec*
# `vllm serve` of this wheel fails at once. The module that it would start takes the same flags, and the model behind one.
cat >/usr/local/bin/vllm <<'PROGRAM'
#!/bin/sh
[ "$1" = serve ] || { echo "vllm: only 'serve' is here" >&2; exit 2; }
model=$2
shift 2
exec python3 -m vllm.entrypoints.openai.api_server --model "$model" "$@"
PROGRAM
chmod +x /usr/local/bin/vllm
