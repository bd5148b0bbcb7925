#!/bin/sh
# Regenerate the committed gRPC code from the .proto files. `make proto` calls this.
#
# Why a virtual environment of its own: grpcio-tools 1.71 wants protobuf < 6, the daemon protobuf >= 7; pip
# would silently downgrade the daemon's runtime if both were installed together. Why such an old compiler:
# its output loads under every protobuf from 5.29 on, while newer output refuses older runtimes. Why
# mypy-protobuf 3.7.0: later ones ship code that crashes on the protobuf that grpcio-tools brings.
#
#   proto/generate.sh           write the generated files
#   proto/generate.sh --check   write nothing; fail if the committed files differ (drift)
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
venv="$root/.venv-codegen"
python=${PYTHON:-python3}

if [ ! -x "$venv/bin/protoc-gen-mypy" ]; then
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check \
        'grpcio-tools==1.71.*' 'mypy-protobuf==3.7.0' 'setuptools<81'
fi

generate() {
    "$venv/bin/python" -m grpc_tools.protoc \
        --plugin="protoc-gen-mypy=$venv/bin/protoc-gen-mypy" \
        --plugin="protoc-gen-mypy_grpc=$venv/bin/protoc-gen-mypy_grpc" \
        --proto_path="$root/proto" \
        --python_out="$1" --grpc_python_out="$1" --mypy_out="$1" --mypy_grpc_out="$1" \
        "$root"/proto/crdt_merge_proto/v1/*.proto
    # A service-less file still gets an empty gRPC module.
    rm -f "$1"/crdt_merge_proto/v1/types_pb2_grpc.py "$1"/crdt_merge_proto/v1/types_pb2_grpc.pyi
}

if [ "${1:-}" = "--check" ]; then
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    generate "$fresh"
    for file in "$fresh"/crdt_merge_proto/v1/*; do
        diff -u "$root/proto/crdt_merge_proto/v1/$(basename "$file")" "$file"
    done
    echo "proto: the generated code is up to date"
else
    generate "$root/proto"
fi
