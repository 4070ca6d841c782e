define noalias noundef ptr @compare_select_fusion(ptr nofree readonly captures(none) %0) local_unnamed_addr #0 {
  %2 = getelementptr inbounds nuw i8, ptr %0, i64 8
  %3 = load ptr, ptr %2, align 8
  %4 = load i64, ptr %3, align 4, !invariant.load !3
  %5 = icmp slt i64 %4, 1
  br i1 %5, label %.lr.ph, label %36
.lr.ph:                                           ; preds = %1
  %6 = getelementptr inbounds nuw i8, ptr %0, i64 24
  %7 = load ptr, ptr %6, align 8, !invariant.load !3
  %8 = getelementptr inbounds nuw i8, ptr %7, i64 32
  %9 = load ptr, ptr %8, align 8, !invariant.load !3
  %10 = getelementptr inbounds nuw i8, ptr %7, i64 16
  %11 = load ptr, ptr %10, align 8, !invariant.load !3
  %12 = load ptr, ptr %7, align 8, !invariant.load !3
  %13 = load float, ptr %11, align 1
  %14 = tail call float @llvm.fabs.f32(float %13)
  %15 = fcmp ole float %14, f0x00800000
  %16 = fmul float %13, f0x3C23D70A
  %17 = select i1 %15, float 0.000000e+00, float %16
  %18 = tail call float @llvm.fabs.f32(float %17)
  %19 = fcmp ole float %18, f0x00800000
  %20 = select i1 %19, float 0.000000e+00, float %17
  %21 = load float, ptr %12, align 1
  %22 = tail call float @llvm.fabs.f32(float %21)
  %23 = fcmp ole float %22, f0x00800000
  %24 = fmul float %21, 9.900000e-01
  %25 = select i1 %23, float 0.000000e+00, float %24
  %26 = tail call float @llvm.fabs.f32(float %25)
  %27 = fcmp ole float %26, f0x00800000
  %28 = select i1 %27, float 0.000000e+00, float %25
  %29 = fadd float %20, %28
  %30 = tail call float @llvm.fabs.f32(float %29)
  %31 = fcmp ole float %30, f0x00800000
  %32 = select i1 %31, float 0.000000e+00, float %29
  %33 = tail call float @llvm.fabs.f32(float %32)
  %34 = fcmp ole float %33, f0x00800000
  %35 = select i1 %34, float 0.000000e+00, float %32
  store float %35, ptr %9, align 1
  br label %36
36:                                               ; preds = %.lr.ph, %1
  ret ptr null
}
