// Runs a frozen network that AOTInductor has compiled, without Python: run PACKAGE INPUT OUTPUT
// Nothing here is about spikes: the program is linked with libtandem_cuda.so, which registers the operators with torch.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

// A tensor that torch.save has written.
at::Tensor read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return torch::pickle_load({std::istreambuf_iterator<char>(file), {}}).toTensor();
}

// So that torch.load reads it.
void write(const std::string& path, const at::Tensor& tensor) {
  const std::vector<char> bytes = torch::pickle_save(tensor);
  std::ofstream file(path, std::ios::binary);
  if (!file.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush()) {
    throw std::runtime_error("cannot write " + path);
  }
}

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: run PACKAGE INPUT OUTPUT");
  torch::inductor::AOTIModelPackageLoader network(argv[1]);
  const at::Tensor input = read(argv[2]);
  network.run({input});  // the first call allocates
  const auto start = std::chrono::steady_clock::now();
  const at::Tensor output = network.run({input}).at(0);
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  std::printf("%lld samples in %.1f ms\n", static_cast<long long>(input.size(0)), time.count());
  write(argv[3], output);
} catch (const std::exception& error) {
  std::fprintf(stderr, "run: %s\n", error.what());
  return 1;
}
