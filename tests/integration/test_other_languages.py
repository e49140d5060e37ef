"""docs/other-languages.md: what it says of descriptor sets, include paths and generators."""

import re
import stat
import subprocess
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/other-languages.md").read_text()
DESCRIPTOR_SET = ROOT / "protos/integrations.v1.binpb"

# Stands in for protoc-gen-go and protoc-gen-go-grpc: writes what it was asked for.
PLUGIN = f"""#!{sys.executable}
import sys
from google.protobuf.compiler import plugin_pb2
request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
packages = {{file.name: file.options.go_package for file in request.proto_file}}
response = plugin_pb2.CodeGeneratorResponse()
for name in request.file_to_generate:
    response.file.add(name=name + "." + sys.argv[0].rpartition("-")[2], content=packages[name])
response.file.add(name="api." + sys.argv[0].rpartition("-")[2], content=packages["google/api/annotations.proto"])
sys.stdout.buffer.write(response.SerializeToString())
"""


def block(language: str) -> str:
    """The only code block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_descriptor_set_needs_no_other_file() -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTOR_SET.read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    service = pool.FindServiceByName("integrations.v1.IntegrationService")
    assert "WatchCredentials" in service.methods_by_name
    for name in re.findall(r"integrations\.v1\.(\w+Request)\b", block("sh")):
        assert pool.FindMessageTypeByName(f"integrations.v1.{name}").name == name


def test_the_include_path_of_python_has_the_imports(tmp_path: Path) -> None:
    (command,) = re.findall(r"`python -c '([^']*)'`", PAGE)
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=60)
    include = Path(found.stdout.strip())
    assert (include / "google/api/annotations.proto").exists()
    own = Path(protoc.__file__).with_name("_proto")  # google/protobuf, which other compilers find by themselves
    paths = [f"-I{ROOT / 'protos'}", f"-I{own}", f"-I{include}"]
    arguments = ["protoc", *paths, f"--descriptor_set_out={tmp_path / 'out'}"]
    assert protoc.main([*arguments, "integrations/v1/integration_service.proto"]) == 0
    without = [argument for argument in arguments if argument != f"-I{include}"]
    assert protoc.main([*without, "integrations/v1/integration_service.proto"]) != 0


def test_buf_generates_a_go_package_from_the_descriptor_set(tmp_path: Path) -> None:
    (tmp_path / "buf.gen.yaml").write_text(block("yaml"))
    (tmp_path / "integrations.v1.binpb").write_bytes(DESCRIPTOR_SET.read_bytes())
    for name in ("protoc-gen-go", "protoc-gen-go-grpc"):
        (tmp_path / name).write_text(PLUGIN)
        (tmp_path / name).chmod(stat.S_IRWXU)
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    buf = Path(sys.executable).with_name("buf")
    result = subprocess.run(
        [buf, "generate"], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    for suffix in ("go", "grpc"):
        written = (tmp_path / f"gen/integrations/v1/integration_service.proto.{suffix}").read_text()
        assert written == "example.com/app/gen/integrations/v1;integrationsv1"
        assert "genproto" in (tmp_path / f"gen/api.{suffix}").read_text()


def test_node_is_told_both_include_paths() -> None:
    assert '["protos", "node_modules/google-proto-files"]' in block("js")
